// Barrier divergence: both halves of the block wait, each at a barrier of its own.
//   Mistake   One __syncthreads() in the if, another in the else.
//   Why       A __syncthreads() under a condition is allowed only where all threads of the block agree on it. That
//             two of them happen to share hardware barrier 0 is luck.
//   Fix       One barrier behind the branches.
//
// expect: barrier_divergence
// launch: grid=1 block=64 args=x[64],y[64]
// block: 0
// result: y = torch.cat([2 * x[:32], -x[32:]]).flip(0)

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float tile[64];
    int t = threadIdx.x;
    if (t < 32) {
        tile[t] = 2.0f * x[t];
        __syncthreads();  // <-- here
    } else {
        tile[t] = -x[t];
        __syncthreads();  // <-- here
    }
    y[t] = tile[63 - t];
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float tile[64];
    int t = threadIdx.x;
    if (t < 32) {
        tile[t] = 2.0f * x[t];
    } else {
        tile[t] = -x[t];
    }
    __syncthreads();
    y[t] = tile[63 - t];
}
