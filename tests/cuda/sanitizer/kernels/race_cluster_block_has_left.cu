// Race: a block of a cluster may leave while another one still reads its shared memory.
//   Mistake   After its part of the work, the block whose numbers are being collected returns.
//   Why       Shared memory belongs to a block as long as it runs. When it ends, the next block of the grid may get that memory.
//   Fix       cluster_sync() after the last access to another block's shared memory: all stay until all have read.
//
// expect: race
// launch: grid=4 block=64 args=x[256],y[2]
// array: total
// result: y = x.view(2, 128).sum(1)
#include "cluster.cuh"

__device__ float sum_of_block(const float* x) {
    __shared__ float values[64];
    values[threadIdx.x] = x[64 * blockIdx.x + threadIdx.x];
    for (int half = 32; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) values[threadIdx.x] += values[threadIdx.x + half];
    }
    __syncthreads();
    return values[0];
}

extern "C" __global__ __cluster_dims__(2, 1, 1) void bad(const float* x, float* y) {
    __shared__ float total;
    float sum = sum_of_block(x);
    if (threadIdx.x == 0) total = sum;
    cluster_sync();
    if (cluster_rank() == 0 && threadIdx.x == 0) y[blockIdx.x / 2] = sum + *map_shared_rank(&total, 1);  // <-- here
}

extern "C" __global__ __cluster_dims__(2, 1, 1) void good(const float* x, float* y) {
    __shared__ float total;
    float sum = sum_of_block(x);
    if (threadIdx.x == 0) total = sum;
    cluster_sync();
    if (cluster_rank() == 0 && threadIdx.x == 0) y[blockIdx.x / 2] = sum + *map_shared_rank(&total, 1);
    cluster_sync();
}
