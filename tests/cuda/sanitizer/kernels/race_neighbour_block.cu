// Race: a block reads what its neighbour writes.
//   Mistake   The last thread of a block reads y of the next block's first thread, behind a __syncthreads().
//   Why       __syncthreads() ends at the block. The next block may run earlier, later or at the same time.
//   Fix       Compute the neighbour's value again from the input, or make it two launches.
//
// expect: race
// launch: grid=4 block=32 args=x[128],y[128],z[128],n=128
// array: y
// result: y = 2 * x
// result: z = 2 * x + 2 * x.roll(-1)

extern "C" __global__ void bad(const float* x, float* y, float* z, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, next = (i + 1) % n;
    y[i] = 2.0f * x[i];  // <-- here
    __syncthreads();
    z[i] = y[i] + y[next];  // <-- here
}

extern "C" __global__ void good(const float* x, float* y, float* z, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, next = (i + 1) % n;
    y[i] = 2.0f * x[i];
    __syncthreads();
    z[i] = y[i] + 2.0f * x[next];
}
