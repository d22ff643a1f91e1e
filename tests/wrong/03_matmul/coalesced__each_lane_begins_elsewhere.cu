// reason: mismatch
int row = blockIdx.y * blockDim.y + threadIdx.y;
int col = blockIdx.x * 32 + threadIdx.x;
if (row >= m || col >= n) return;
float sum = 0.0f;
for (int i = 0; i < k; ++i) {
    int step = (i + threadIdx.x) % k;      // right, and every lane is at another row of b
    sum += a[row * k + step] * b[step * n + col];
}
c[row * n + col] = sum;
