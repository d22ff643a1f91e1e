// Sum, v2: a tree in shared memory. A block of 256 threads turns 256 elements into one partial sum, in eight steps.
//   Idea      Addition in pairs: half of the threads add the other half's values, then a quarter, ... log2(256) = 8 steps instead
//             of 256. Launch again on the partial sums until one is left.
//   Predicts  x is read once, 1/256 of it written and read again: bound by memory if the steps cost nothing. They do cost:
//             8 barriers for 256 elements, and after the first step half of the threads idle, after the second three quarters.
//   Measured  data/measured/h200/sum.csv: 16777216 elements: v1 29.5 ms -> v2 0.0811 ms.
//   Wastes    Barriers and shared memory where a warp could exchange registers; one element a thread keeps too few bytes in flight.

constexpr int THREADS = 256;

// Block b writes the sum of its 256 elements to partial[b]. Launch with ceil(n / 256) blocks of 256 threads.
__global__ void sum_tree(const float* x, float* partial, long long n) {
    __shared__ float value[THREADS];
    const long long i = blockIdx.x * (long long)THREADS + threadIdx.x;
    value[threadIdx.x] = i < n ? x[i] : 0.0f;
    __syncthreads();

    // Neighbouring threads stay busy and touch neighbouring words: no bank conflicts, and whole warps fall idle together.
    for (int distance = THREADS / 2; distance > 0; distance /= 2) {
        if (threadIdx.x < distance) value[threadIdx.x] += value[threadIdx.x + distance];
        __syncthreads();
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = value[0];
}
