// Barrier divergence: one block of a cluster leaves before the cluster's barrier.
//   Mistake   The last block has no elements left and returns at once.
//   Why       cluster_sync() is for all threads of all blocks of the cluster, as __syncthreads() is for all threads of a block.
//   Fix       Guard the work, not the barrier: a block without elements still comes to it.
//
// expect: barrier_divergence
// launch: grid=4 block=32 args=x[96],y[2],n=96
// result: y = torch.stack([x[:64].view(2, 32)[:, 0].sum(), x[64]])
#include "cluster.cuh"

extern "C" __global__ __cluster_dims__(2, 1, 1) void bad(const float* x, float* y, int n) {
    __shared__ float first;
    if (32 * blockIdx.x >= n) return;
    if (threadIdx.x == 0) first = x[32 * blockIdx.x];
    cluster_sync();  // <-- here
    if (cluster_rank() == 0 && threadIdx.x == 0) y[blockIdx.x / 2] = first + (32 * (blockIdx.x + 1) < n ? *map_shared_rank(&first, 1) : 0.0f);
    cluster_sync();  // <-- here
}

extern "C" __global__ __cluster_dims__(2, 1, 1) void good(const float* x, float* y, int n) {
    __shared__ float first;
    if (32 * blockIdx.x < n && threadIdx.x == 0) first = x[32 * blockIdx.x];
    cluster_sync();
    if (cluster_rank() == 0 && threadIdx.x == 0) y[blockIdx.x / 2] = first + (32 * (blockIdx.x + 1) < n ? *map_shared_rank(&first, 1) : 0.0f);
    cluster_sync();
}
