// Out of bounds: thread 0 looks to its left in shared memory.
//   Mistake   The first step of a scan adds tile[t - 1] in every thread.
//   Why       tile[-1] lies in front of the array: another array of the block, or nothing.
//   Fix       Thread 0 has nothing to add.
//
// expect: out_of_bounds
// launch: grid=2 block=64 args=x[128],y[128]
// array: tile
// index: -1
// block: 0
// threads: 0
// result: y = x + torch.cat([torch.zeros(2, 1), x.view(2, 64)[:, :-1]], 1).flatten()

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float tile[64];
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    tile[t] = x[i];
    __syncthreads();
    float left = tile[t - 1];  // <-- here
    y[i] = tile[t] + left;
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float tile[64];
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    tile[t] = x[i];
    __syncthreads();
    float left = t > 0 ? tile[t - 1] : 0.0f;
    y[i] = tile[t] + left;
}
