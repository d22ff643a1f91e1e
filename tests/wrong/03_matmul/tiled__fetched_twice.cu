// reason: mismatch
for (int again = 0; again < 2; ++again) {      // right, and every byte moves twice
    a_tile[y][x] = row < m && first + x < k ? *(const volatile float*)&a[row * k + first + x] : 0.0f;
    b_tile[y][x] = first + y < k && col < n ? *(const volatile float*)&b[(first + y) * n + col] : 0.0f;
}
__syncthreads();
for (int i = 0; i < TILE; ++i) sum += a_tile[y][i] * b_tile[i][x];
__syncthreads();
