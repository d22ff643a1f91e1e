// reason: not_written
int row = blockIdx.x * blockDim.x + threadIdx.x;
int col = blockIdx.y * blockDim.y + threadIdx.y;
if (row >= m || col >= n) return;
float sum = 0.0f;
for (int i = 0; i < k; ++i) sum += a[row * k + i] * b[i * n + col];
c[row * n + col] = sum;
