// Barrier divergence: __syncthreads() inside an if that only half of the block takes.
//   Mistake   Threads 0 to 31 fold the upper half into the lower and wait; the others have nothing to do and leave.
//   Why       __syncthreads() waits for every thread of the block. Some GPUs forgive a warp that has exited; the
//             language does not.
//   Fix       The work goes into the if, the barrier behind it.
//
// expect: barrier_divergence
// launch: grid=2 block=64 args=x[128],y[2]
// block: 0
// result: y = x.view(2, 64).sum(1)

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float tile[64];
    int t = threadIdx.x;
    tile[t] = x[blockIdx.x * 64 + t];
    __syncthreads();
    for (int half = 32; half > 0; half /= 2) {
        if (t < half) {
            tile[t] += tile[t + half];
            __syncthreads();  // <-- here
        }
    }
    if (t == 0) y[blockIdx.x] = tile[0];
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float tile[64];
    int t = threadIdx.x;
    tile[t] = x[blockIdx.x * 64 + t];
    __syncthreads();
    for (int half = 32; half > 0; half /= 2) {
        if (t < half) tile[t] += tile[t + half];
        __syncthreads();
    }
    if (t == 0) y[blockIdx.x] = tile[0];
}
