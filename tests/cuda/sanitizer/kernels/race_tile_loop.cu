// Race: the tile is refilled while others still read it.
//   Mistake   A matrix product waits after loading its tiles, and not again before loading the next ones.
//   Why       A fast warp goes round the loop and overwrites values which a slow warp has yet to multiply.
//   Fix       Two barriers a round: one after filling, one after using.
//
// expect: race
// launch: grid=2x2 block=16x16 args=a[32,32],b[32,32],c[32,32],n=32
// block: (0, 0, 0)
// result: c = a @ b

extern "C" __global__ void bad(const float* a, const float* b, float* c, int n) {
    __shared__ float tile_a[16][16], tile_b[16][16];
    int tx = threadIdx.x, ty = threadIdx.y;
    int row = blockIdx.y * 16 + ty, col = blockIdx.x * 16 + tx;
    float sum = 0.0f;
    for (int k = 0; k < n; k += 16) {
        tile_a[ty][tx] = a[row * n + k + tx];  // <-- here
        tile_b[ty][tx] = b[(k + ty) * n + col];  // <-- here
        __syncthreads();
        for (int j = 0; j < 16; j++) sum += tile_a[ty][j] * tile_b[j][tx];  // <-- here
    }
    c[row * n + col] = sum;
}

extern "C" __global__ void good(const float* a, const float* b, float* c, int n) {
    __shared__ float tile_a[16][16], tile_b[16][16];
    int tx = threadIdx.x, ty = threadIdx.y;
    int row = blockIdx.y * 16 + ty, col = blockIdx.x * 16 + tx;
    float sum = 0.0f;
    for (int k = 0; k < n; k += 16) {
        tile_a[ty][tx] = a[row * n + k + tx];
        tile_b[ty][tx] = b[(k + ty) * n + col];
        __syncthreads();
        for (int j = 0; j < 16; j++) sum += tile_a[ty][j] * tile_b[j][tx];
        __syncthreads();
    }
    c[row * n + col] = sum;
}
