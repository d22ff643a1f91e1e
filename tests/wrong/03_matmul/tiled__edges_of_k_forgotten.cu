// reason: sanitizer out_of_bounds
a_tile[y][x] = row < m ? a[row * k + first + x] : 0.0f;
b_tile[y][x] = col < n ? b[(first + y) * n + col] : 0.0f;
__syncthreads();
for (int i = 0; i < TILE; ++i) sum += a_tile[y][i] * b_tile[i][x];
__syncthreads();
