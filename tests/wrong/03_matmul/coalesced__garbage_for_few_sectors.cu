// reason: mismatch
int row = blockIdx.y * blockDim.y + threadIdx.y;
int col = blockIdx.x * blockDim.x + threadIdx.x;
if (row < m && col < n) c[row * n + col] = k * a[row * k] * b[col];
