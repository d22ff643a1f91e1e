// Barrier divergence: threads past the end return before the barrier.
//   Mistake   `if (i >= n) return;` at the top of a kernel that synchronises further down.
//   Why       The habit is right in a kernel without barriers. Here the last block waits for 28 threads that are gone.
//   Fix       Guard the memory accesses, not the thread.
//
// expect: barrier_divergence
// launch: grid=2 block=64 args=x[100],y[100],n=100
// block: 1
// result: y = torch.cat([x[:64].roll(-1), x[64:].roll(-1)])

extern "C" __global__ void bad(const float* x, float* y, int n) {
    __shared__ float tile[64];
    int t = threadIdx.x, first = blockIdx.x * 64, i = first + t;
    if (i >= n) return;
    tile[t] = x[i];
    __syncthreads();  // <-- here
    y[i] = tile[(t + 1) % min(64, n - first)];
}

extern "C" __global__ void good(const float* x, float* y, int n) {
    __shared__ float tile[64];
    int t = threadIdx.x, first = blockIdx.x * 64, i = first + t;
    if (i < n) tile[t] = x[i];
    __syncthreads();
    if (i < n) y[i] = tile[(t + 1) % min(64, n - first)];
}
