// Uninitialized: a block reads what its neighbour in the cluster was to write, and did not.
//   Mistake   The block's edge is put into edge[0] only; the neighbour on the left looks at edge[1].
//   Why       Shared memory holds what a block before left there. map_shared_rank leads to another block's, which is no cleaner.
//   Fix       Write both edges.
//
// expect: uninitialized
// launch: grid=2 block=32 args=x[64],y[2]
// array: edge
// index: 1
// result: y = torch.stack([x[63], x[0]])
#include "cluster.cuh"

extern "C" __global__ __cluster_dims__(2, 1, 1) void bad(const float* x, float* y) {
    __shared__ float edge[2];
    if (threadIdx.x == 0) edge[0] = x[32 * blockIdx.x];
    cluster_sync();
    if (threadIdx.x == 0) y[blockIdx.x] = map_shared_rank(edge, cluster_rank() ^ 1)[1 - cluster_rank()];  // <-- here
    cluster_sync();
}

extern "C" __global__ __cluster_dims__(2, 1, 1) void good(const float* x, float* y) {
    __shared__ float edge[2];
    if (threadIdx.x == 0) edge[0] = x[32 * blockIdx.x];
    if (threadIdx.x == 31) edge[1] = x[32 * blockIdx.x + 31];
    cluster_sync();
    if (threadIdx.x == 0) y[blockIdx.x] = map_shared_rank(edge, cluster_rank() ^ 1)[1 - cluster_rank()];
    cluster_sync();
}
