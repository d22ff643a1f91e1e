// Out of bounds: a histogram is spread over the blocks of a cluster, and the last part is too small.
//   Mistake   90 bins in 4 blocks are taken for 22 each, so bins 88 and 89 fall behind the 22 of the last block.
//   Why       An index into another block's shared memory has the same end as one into one's own.
//   Fix       Round up: 23 bins a block, of which the last one leaves two unused.
//
// expect: out_of_bounds
// launch bad: grid=4 block=64 shared_mem=88 args=x:int32[256]<90,counts:int32[90]=0
// launch good: grid=4 block=64 shared_mem=92 args=x:int32[256]<90,counts:int32[90]=0
// array: bins
// result: counts = torch.bincount(x, minlength=90).int()
#include "cluster.cuh"

extern "C" __global__ __cluster_dims__(4, 1, 1) void bad(const int* x, int* counts) {
    extern __shared__ int bins[];
    int t = threadIdx.x, each = 90 / 4;
    if (t < each) bins[t] = 0;
    cluster_sync();
    int bin = x[64 * blockIdx.x + t], rank = min(bin / each, 3);
    atomicAdd(&map_shared_rank(bins, rank)[bin - rank * each], 1);  // <-- here
    cluster_sync();
    if (t < each) counts[cluster_rank() * each + t] = bins[t];
}

extern "C" __global__ __cluster_dims__(4, 1, 1) void good(const int* x, int* counts) {
    extern __shared__ int bins[];
    int t = threadIdx.x, each = (90 + 3) / 4;
    if (t < each) bins[t] = 0;
    cluster_sync();
    int bin = x[64 * blockIdx.x + t], rank = bin / each;
    atomicAdd(&map_shared_rank(bins, rank)[bin - rank * each], 1);
    cluster_sync();
    int first = cluster_rank() * each;
    if (t < each && first + t < 90) counts[first + t] = bins[t];
}
