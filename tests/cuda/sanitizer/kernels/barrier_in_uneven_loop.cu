// Barrier divergence: threads go round a loop with a barrier a different number of times.
//   Mistake   A block-stride loop ends thread by thread, and its body synchronises.
//   Why       100 elements and 64 threads: 36 threads come to the barrier twice, 28 once.
//   Fix       Loop over the chunks, which are the same for all; guard the element.
//
// expect: barrier_divergence
// launch: grid=1 block=64 args=x[100],y[100],n=100
// block: 0
// result: y = torch.cat([x[:64].flip(0), x[64:].flip(0)])

extern "C" __global__ void bad(const float* x, float* y, int n) {
    __shared__ float tile[64];
    int t = threadIdx.x;
    for (int i = t; i < n; i += 64) {
        tile[t] = x[i];
        __syncthreads();  // <-- here
        y[i] = tile[min(64, n - (i - t)) - 1 - t];
        __syncthreads();  // <-- here
    }
}

extern "C" __global__ void good(const float* x, float* y, int n) {
    __shared__ float tile[64];
    int t = threadIdx.x;
    for (int first = 0; first < n; first += 64) {
        int i = first + t;
        if (i < n) tile[t] = x[i];
        __syncthreads();
        if (i < n) y[i] = tile[min(64, n - first) - 1 - t];
        __syncthreads();
    }
}
