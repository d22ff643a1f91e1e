// reason: mismatch
a_tile[y][x] = row < m && first + x < k ? a[row * k + first + x] : 0.0f;
__syncthreads();
if (col < n) for (int i = 0; i < TILE && first + i < k; ++i) sum += a_tile[y][i] * b[(first + i) * n + col];      // right, and b is read 32 times
__syncthreads();
