// Uninitialized: a stencil's halo is never filled at the edge of the grid.
//   Mistake   The first block has no left neighbour to load from, and leaves its halo element alone.
//   Why       The element exists and is read; what it holds is left over from an earlier block.
//   Fix       At the edge of the grid the halo repeats the edge value.
//
// expect: uninitialized
// launch: grid=2 block=64 args=x[128],y[128]
// array: tile
// index: 0
// block: 0
// threads: 0
// result: y = 0.5 * (torch.cat([x[:1], x[:-1]]) + x)

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float tile[65];
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    tile[t + 1] = x[i];
    if (t == 0 && i > 0) tile[0] = x[i - 1];
    __syncthreads();
    y[i] = 0.5f * (tile[t] + tile[t + 1]);  // <-- here
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float tile[65];
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    tile[t + 1] = x[i];
    if (t == 0) tile[0] = x[i > 0 ? i - 1 : 0];
    __syncthreads();
    y[i] = 0.5f * (tile[t] + tile[t + 1]);
}
