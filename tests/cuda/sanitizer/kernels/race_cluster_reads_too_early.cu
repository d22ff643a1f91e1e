// Race: a block of a cluster reads its neighbour's shared memory after a barrier of its own.
//   Mistake   __syncthreads() stands between writing a row and reading that of the other block.
//   Why       __syncthreads() waits for the threads of one block. The other one may not have written yet, or not even have started.
//   Fix       cluster_sync(), which waits for all threads of the cluster.
//
// expect: race
// launch: grid=4 block=32 args=x[128],y[128]
// array: row
// result: y = x + x.view(2, 2, 32).flip(1).reshape(128)
#include "cluster.cuh"

extern "C" __global__ __cluster_dims__(2, 1, 1) void bad(const float* x, float* y) {
    __shared__ float row[32];
    int i = 32 * blockIdx.x + threadIdx.x;
    row[threadIdx.x] = x[i];  // <-- here
    __syncthreads();
    y[i] = x[i] + map_shared_rank(row, cluster_rank() ^ 1)[threadIdx.x];  // <-- here
    cluster_sync();
}

extern "C" __global__ __cluster_dims__(2, 1, 1) void good(const float* x, float* y) {
    __shared__ float row[32];
    int i = 32 * blockIdx.x + threadIdx.x;
    row[threadIdx.x] = x[i];
    cluster_sync();
    y[i] = x[i] + map_shared_rank(row, cluster_rank() ^ 1)[threadIdx.x];
    cluster_sync();
}
