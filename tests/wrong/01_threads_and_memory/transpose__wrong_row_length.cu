// reason: sanitizer out_of_bounds
int col = blockIdx.x * blockDim.x + threadIdx.x;
int row = blockIdx.y * blockDim.y + threadIdx.y;
if (row < rows && col < cols) out[col * cols + row] = x[row * cols + col];
