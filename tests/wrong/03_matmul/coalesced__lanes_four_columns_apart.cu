// reason: mismatch
int row = blockIdx.y * 8 + threadIdx.x % 8;      // right, and a warp is spread over 8 rows
int col = blockIdx.x * 32 + threadIdx.y + 8 * (threadIdx.x / 8);
if (row >= m || col >= n) return;
float sum = 0.0f;
for (int i = 0; i < k; ++i) sum += a[row * k + i] * b[i * n + col];
c[row * n + col] = sum;
