// Race: a tile is reversed without waiting for it.
//   Mistake   No barrier between filling the tile and reading another thread's element.
//   Why       The other thread may not have written yet. Within one warp it often has, which hides the mistake until
//             the block grows.
//   Fix       __syncthreads() between writing and reading.
//
// expect: race
// launch: grid=2 block=64 args=x[128],y[128]
// array: tile
// block: 0
// result: y = x.view(2, 64).flip(1).flatten()

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float tile[64];
    int t = threadIdx.x, first = blockIdx.x * blockDim.x;
    tile[t] = x[first + t];  // <-- here
    y[first + t] = tile[63 - t];  // <-- here
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float tile[64];
    int t = threadIdx.x, first = blockIdx.x * blockDim.x;
    tile[t] = x[first + t];
    __syncthreads();
    y[first + t] = tile[63 - t];
}
