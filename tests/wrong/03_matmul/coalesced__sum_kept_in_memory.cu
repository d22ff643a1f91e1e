// reason: mismatch
int row = blockIdx.y * blockDim.y + threadIdx.y;
int col = blockIdx.x * blockDim.x + threadIdx.x;
if (row >= m || col >= n) return;
volatile float* sum = &c[row * n + col];      // right, and c goes to memory and back in each step
*sum = 0.0f;
for (int i = 0; i < k; ++i) *sum = *sum + a[row * k + i] * b[i * n + col];
