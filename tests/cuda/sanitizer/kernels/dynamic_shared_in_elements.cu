// Out of bounds: the launch asks for 64 bytes where 64 floats are needed.
//   Mistake   shared_mem is given in elements.
//   Why       shared_mem counts bytes. The kernel is right, its launch is not: from the 17th float on, the block
//             writes behind its dynamic shared memory.
//   Fix       shared_mem = 64 * sizeof(float). The two kernels below are the same.
//
// expect: out_of_bounds
// launch bad: grid=2 block=64 shared_mem=64 args=x[128],y[128]
// launch good: grid=2 block=64 shared_mem=256 args=x[128],y[128]
// array: tile
// index: 16
// block: 0
// threads: 16
// result: y = x.view(2, 64).flip(1).flatten()

extern "C" __global__ void bad(const float* x, float* y) {
    extern __shared__ float tile[];
    int t = threadIdx.x, first = blockIdx.x * blockDim.x;
    tile[t] = x[first + t];  // <-- here
    __syncthreads();
    y[first + t] = tile[blockDim.x - 1 - t];
}

extern "C" __global__ void good(const float* x, float* y) {
    extern __shared__ float tile[];
    int t = threadIdx.x, first = blockIdx.x * blockDim.x;
    tile[t] = x[first + t];
    __syncthreads();
    y[first + t] = tile[blockDim.x - 1 - t];
}
