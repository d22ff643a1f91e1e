// Barrier divergence: each thread iterates until its own value has converged.
//   Mistake   The loop's condition is the thread's own, and the loop synchronises.
//   Why       The first thread to converge leaves, and the others wait for it.
//   Fix       All go on until all have converged: __syncthreads_or() is barrier and vote in one.
//
// expect: barrier_divergence
// launch: grid=1 block=64 args=x[64],y[64]
// block: 0
// result: y = torch.ldexp(x, -(torch.frexp(x).exponent + 6).clamp(min=0))

extern "C" __global__ void bad(const float* x, float* y) {
    int t = threadIdx.x;
    float value = x[t];
    while (fabsf(value) >= 0.015625f) {
        value *= 0.5f;
        __syncthreads();  // <-- here
    }
    y[t] = value;
}

extern "C" __global__ void good(const float* x, float* y) {
    int t = threadIdx.x;
    float value = x[t];
    while (__syncthreads_or(fabsf(value) >= 0.015625f)) {
        if (fabsf(value) >= 0.015625f) value *= 0.5f;
    }
    y[t] = value;
}
