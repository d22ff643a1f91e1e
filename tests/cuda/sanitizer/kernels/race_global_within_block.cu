// Race: threads of one block exchange values through global memory without a barrier.
//   Mistake   z reads y of another thread in the block right after all have written y.
//   Why       Global memory is no more ordered than shared memory: without a barrier the other write may be still to come.
//   Fix       __syncthreads() orders global memory too, within the block.
//
// expect: race
// launch: grid=2 block=64 args=x[128],y[128],z[128]
// array: y
// block: 0
// result: y = 2 * x
// result: z = 2 * x.view(2, 64).flip(1).flatten()

extern "C" __global__ void bad(const float* x, float* y, float* z) {
    int t = threadIdx.x, first = blockIdx.x * blockDim.x;
    y[first + t] = 2.0f * x[first + t];  // <-- here
    z[first + t] = y[first + 63 - t];  // <-- here
}

extern "C" __global__ void good(const float* x, float* y, float* z) {
    int t = threadIdx.x, first = blockIdx.x * blockDim.x;
    y[first + t] = 2.0f * x[first + t];
    __syncthreads();
    z[first + t] = y[first + 63 - t];
}
