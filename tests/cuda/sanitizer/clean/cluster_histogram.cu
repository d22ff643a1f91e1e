// Clean: all blocks of a cluster add to bins that lie spread over their shared memory.
//
// expect: clean
// launch: grid=4 block=64 args=x:int32[256]<48,counts:int32[48]=0
// result: counts = torch.bincount(x, minlength=48).int()
#include "cluster.cuh"

extern "C" __global__ __cluster_dims__(4, 1, 1) void good(const int* x, int* counts) {
    __shared__ int bins[12];
    if (threadIdx.x < 12) bins[threadIdx.x] = 0;
    cluster_sync();
    const int bin = x[64 * blockIdx.x + threadIdx.x];
    atomicAdd(map_shared_rank(&bins[bin % 12], bin / 12), 1);
    cluster_sync();
    if (threadIdx.x < 12) counts[12 * cluster_rank() + threadIdx.x] = bins[threadIdx.x];
}
