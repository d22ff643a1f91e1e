// Barrier divergence: lanes call __syncwarp with a mask that leaves them out.
//   Mistake   All 32 lanes call __syncwarp(0x0000ffff).
//   Why       A caller must be in its own mask. Lanes 16 to 31 wait for others, and no one for them.
//   Fix       Name all lanes that call.
//
// expect: barrier_divergence
// launch: grid=1 block=32 args=x[32],y[32]
// block: 0
// threads: 16
// result: y = x.view(16, 2).flip(1).flatten()

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float tile[32];
    int lane = threadIdx.x;
    tile[lane] = x[lane];
    __syncwarp(0x0000ffffu);  // <-- here
    y[lane] = tile[lane ^ 1];
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float tile[32];
    int lane = threadIdx.x;
    tile[lane] = x[lane];
    __syncwarp(0xffffffffu);
    y[lane] = tile[lane ^ 1];
}
