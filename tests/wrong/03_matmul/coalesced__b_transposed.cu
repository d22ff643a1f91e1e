// reason: mismatch
int row = blockIdx.y * blockDim.y + threadIdx.y;
int col = blockIdx.x * blockDim.x + threadIdx.x;
if (row >= m || col >= n) return;
float sum = 0.0f;
for (int i = 0; i < k; ++i) sum += a[row * k + i] * b[col * n + i];
c[row * n + col] = sum;
