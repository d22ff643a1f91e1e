// reason: mismatch
a_tile[y][x] = row < m && first + x < k ? a[row * k + first + x] : 0.0f;
b_tile[x][y] = first + y < k && col < n ? b[(first + y) * n + col] : 0.0f;      // right, and 32 lanes meet in one bank
__syncthreads();
for (int i = 0; i < TILE; ++i) sum += a_tile[y][i] * b_tile[x][i];
__syncthreads();
