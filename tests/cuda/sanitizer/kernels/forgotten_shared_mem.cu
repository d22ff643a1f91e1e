// Out of bounds: the launch forgets the dynamic shared memory altogether.
//   Mistake   shared_mem is left at 0.
//   Why       The compiler cannot know how much an `extern __shared__` array needs; only the launch can say.
//   Fix       shared_mem = 64 * sizeof(float). The two kernels below are the same.
//
// expect: out_of_bounds
// launch bad: grid=1 block=64 args=x[64],y[64]
// launch good: grid=1 block=64 shared_mem=256 args=x[64],y[64]
// array: tile
// index: 0
// block: 0
// threads: 0
// result: y = x.flip(0)

extern "C" __global__ void bad(const float* x, float* y) {
    extern __shared__ float tile[];
    tile[threadIdx.x] = x[threadIdx.x];  // <-- here
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}

extern "C" __global__ void good(const float* x, float* y) {
    extern __shared__ float tile[];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}
