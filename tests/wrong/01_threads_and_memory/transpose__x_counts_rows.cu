// reason: not_written
int row = blockIdx.x * blockDim.x + threadIdx.x;
int col = blockIdx.y * blockDim.y + threadIdx.y;
if (row < rows && col < cols) out[col * rows + row] = x[row * cols + col];
