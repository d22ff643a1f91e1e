// Uninitialized: the tile is half empty at the edge, and all of it is summed.
//   Mistake   Threads past the end leave their tile element as it is.
//   Why       Shared memory is not zeroed. It holds what the block before left there, so small tests pass.
//   Fix       Threads past the end write 0.
//
// expect: uninitialized
// launch: grid=2 block=64 args=x[100],y[2],n=100
// array: tile
// index: 36
// block: 1
// threads: 0
// result: y = torch.stack([x[:64].sum(), x[64:].sum()])

extern "C" __global__ void bad(const float* x, float* y, int n) {
    __shared__ float tile[64];
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    if (i < n) tile[t] = x[i];
    __syncthreads();
    if (t == 0) {
        float sum = 0.0f;
        for (int k = 0; k < 64; k++) sum += tile[k];  // <-- here
        y[blockIdx.x] = sum;
    }
}

extern "C" __global__ void good(const float* x, float* y, int n) {
    __shared__ float tile[64];
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    tile[t] = i < n ? x[i] : 0.0f;
    __syncthreads();
    if (t == 0) {
        float sum = 0.0f;
        for (int k = 0; k < 64; k++) sum += tile[k];
        y[blockIdx.x] = sum;
    }
}
