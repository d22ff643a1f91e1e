// Sum, v1: naive. One thread an element, and every thread adds its element to the one total, atomically.
//   Idea      An atomic addition cannot be interrupted, so a million threads may add to one float and none is lost.
//   Predicts  Additions to one address happen one after another, near one a clock: 64 Mi elements take tens of milliseconds,
//             though their bytes would take 0.06 ms.
//   Measured  data/measured/h200/sum.csv: 16777216 elements: 29.5 ms.
//   Wastes    Everything but the atomic unit. And the order of additions is whatever it happens to be: floating-point addition is
//             not associative, so two runs differ in the last bits.

// Adds x[0] .. x[n-1] to *total. Launch with at least n threads.
__global__ void sum_atomic(const float* x, float* total, long long n) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(total, x[i]);
}
