// reason: mismatch
int col = blockIdx.x * blockDim.x + threadIdx.x;
int row = blockIdx.y * blockDim.y + threadIdx.y;
if (row < rows && col < cols) out[row * cols + col] = x[row * cols + col];
