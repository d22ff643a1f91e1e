// Race: __syncwarp() where the whole block must wait.
//   Mistake   Thread t reads what thread 63 - t wrote, and that is a thread of the other warp.
//   Why       __syncwarp() orders the lanes of one warp and says nothing about other warps.
//   Fix       __syncthreads().
//
// expect: race
// launch: grid=1 block=64 args=x[64],y[64]
// array: tile
// block: 0
// result: y = x.flip(0)

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float tile[64];
    int t = threadIdx.x;
    tile[t] = x[t];  // <-- here
    __syncwarp();
    y[t] = tile[63 - t];  // <-- here
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float tile[64];
    int t = threadIdx.x;
    tile[t] = x[t];
    __syncthreads();
    y[t] = tile[63 - t];
}
