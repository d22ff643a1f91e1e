// reason: sanitizer out_of_bounds
int col = blockIdx.x * blockDim.x + threadIdx.x;
int row = blockIdx.y * blockDim.y + threadIdx.y;
out[col * rows + row] = x[row * cols + col];
