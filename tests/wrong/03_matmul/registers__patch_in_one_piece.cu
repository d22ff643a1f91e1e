// reason: mismatch
%%cuda --name registers -D TILE=64 -D DEPTH=16 -D SIDE=16 -D PATCH=4
__global__ void registers(const float* a, const float* b, float* c, int m, int n, int k) {
    __shared__ float a_tile[DEPTH][TILE + 2], b_tile[DEPTH][TILE + 16];
    int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * TILE, col = blockIdx.x * TILE;
    float sum[PATCH][PATCH] = {};
    for (int first = 0; first < k; first += DEPTH) {
        for (int i = 0; i < TILE; i += SIDE) {
            a_tile[x][y + i] = row + y + i < m && first + x < k ? a[(row + y + i) * k + first + x] : 0.0f;
            b_tile[y][x + i] = first + y < k && col + x + i < n ? b[(first + y) * n + col + x + i] : 0.0f;
        }
        __syncthreads();
        for (int d = 0; d < DEPTH; ++d) {
            float left[PATCH], right[PATCH];      // right, and lanes are 4 words apart
            for (int i = 0; i < PATCH; ++i) left[i] = a_tile[d][PATCH * y + i], right[i] = b_tile[d][PATCH * x + i];
            for (int i = 0; i < PATCH; ++i)
                for (int j = 0; j < PATCH; ++j) sum[i][j] += left[i] * right[j];
        }
        __syncthreads();
    }
    for (int i = 0; i < PATCH; ++i)
        for (int j = 0; j < PATCH; ++j) {
            int r = row + PATCH * y + i, s = col + PATCH * x + j;
            if (r < m && s < n) c[r * n + s] = sum[i][j];
        }
}
