// reason: sanitizer race
a_tile[y][x] = row < m && first + x < k ? a[row * k + first + x] : 0.0f;
b_tile[y][x] = first + y < k && col < n ? b[(first + y) * n + col] : 0.0f;
for (int i = 0; i < TILE; ++i) sum += a_tile[y][i] * b_tile[i][x];
__syncthreads();
