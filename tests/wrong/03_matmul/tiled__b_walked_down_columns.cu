// reason: mismatch
a_tile[y][x] = row < m && first + x < k ? a[row * k + first + x] : 0.0f;
int b_col = blockIdx.x * TILE + y;      // right, and neighbouring lanes are a row of b apart
b_tile[x][y] = first + x < k && b_col < n ? b[(first + x) * n + b_col] : 0.0f;
__syncthreads();
for (int i = 0; i < TILE; ++i) sum += a_tile[y][i] * b_tile[i][x];
__syncthreads();
