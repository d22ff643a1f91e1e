// Barrier divergence: only the positive threads come to be counted.
//   Mistake   __syncthreads_count() stands inside the if that it should count.
//   Why       It is a barrier before it is a count: all threads must call it, and each says yes or no.
//   Fix       Give it the condition.
//
// expect: barrier_divergence
// launch: grid=1 block=64 args=x[64],y:int32[64]
// block: 0
// result: y = (x > 0).sum().int().expand(64)

extern "C" __global__ void bad(const float* x, int* y) {
    if (x[threadIdx.x] > 0.0f) {
        int positive = __syncthreads_count(1);  // <-- here
        y[threadIdx.x] = positive;
    }
}

extern "C" __global__ void good(const float* x, int* y) {
    int positive = __syncthreads_count(x[threadIdx.x] > 0.0f);
    y[threadIdx.x] = positive;
}
