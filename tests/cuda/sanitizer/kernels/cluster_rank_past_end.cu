// Out of bounds: the last block of a cluster asks for the shared memory of the next one.
//   Mistake   Each block hands its number to rank + 1, and so does the last.
//   Why       Ranks go from 0 to cluster_size() - 1. There is no block behind the last one.
//   Fix       Let the ring close: (rank + 1) % cluster_size().
//
// expect: out_of_bounds
// launch: grid=4 block=1 args=x[4],y[4]
// block: 3
// result: y = x.roll(1)
#include "cluster.cuh"

extern "C" __global__ __cluster_dims__(4, 1, 1) void bad(const float* x, float* y) {
    __shared__ float from_the_left;
    cluster_sync();
    *map_shared_rank(&from_the_left, cluster_rank() + 1) = x[blockIdx.x];  // <-- here
    cluster_sync();
    y[blockIdx.x] = from_the_left;
}

extern "C" __global__ __cluster_dims__(4, 1, 1) void good(const float* x, float* y) {
    __shared__ float from_the_left;
    cluster_sync();
    *map_shared_rank(&from_the_left, (cluster_rank() + 1) % cluster_size()) = x[blockIdx.x];
    cluster_sync();
    y[blockIdx.x] = from_the_left;
}
