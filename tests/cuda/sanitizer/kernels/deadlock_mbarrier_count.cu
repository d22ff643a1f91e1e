// Deadlock: an mbarrier counts threads, and one lane of each warp arrives.
//   Mistake   mbarrier_init is told 64, the number of threads that write; lane 0 of each of the two warps arrives.
//   Why       A phase completes when as many arrivals have come as mbarrier_init was told, whoever they are from.
//   Fix       Count the arrivals: 2. (The warp meets before its lane 0 speaks for all of it.)
//
// expect: deadlock
// launch: grid=1 block=96 args=x[64],y[32]
// block: 0
// threads: 64
// result: y = x[:32] + x[32:]
#include "mbarrier.cuh"

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float row[64];
    __shared__ Mbarrier full;
    int t = threadIdx.x;
    if (t == 0) mbarrier_init(&full, 64);
    __syncthreads();
    if (t < 64) {
        row[t] = x[t];
        __syncwarp();
        if (t % 32 == 0) mbarrier_arrive(&full);
    } else {
        mbarrier_wait(&full, 0);  // <-- here
        y[t - 64] = row[t - 64] + row[t - 32];
    }
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float row[64];
    __shared__ Mbarrier full;
    int t = threadIdx.x;
    if (t == 0) mbarrier_init(&full, 2);
    __syncthreads();
    if (t < 64) {
        row[t] = x[t];
        __syncwarp();
        if (t % 32 == 0) mbarrier_arrive(&full);
    } else {
        mbarrier_wait(&full, 0);
        y[t - 64] = row[t - 64] + row[t - 32];
    }
}
