// Deadlock: an mbarrier counts the threads of two blocks, and each block arrives at its own.
//   Mistake   mbarrier_init is told 64, the threads of the cluster, and all of them call mbarrier_arrive().
//   Why       Each block has its own mbarrier at that place. mbarrier_arrive() comes to that of the calling thread's block.
//   Fix       Arrive at those of both blocks, with mbarrier_arrive_remote().
//
// expect: deadlock
// launch: grid=2 block=32 args=x[64],y[64]
// result: y = x.view(2, 32).flip(0).reshape(64)
#include "cluster.cuh"

extern "C" __global__ __cluster_dims__(2, 1, 1) void bad(const float* x, float* y) {
    __shared__ float row[32];
    __shared__ Mbarrier written;
    int t = threadIdx.x, i = 32 * blockIdx.x + t;
    if (t == 0) {
        mbarrier_init(&written, 64);
        fence_mbarrier_init();
    }
    cluster_sync();
    map_shared_rank(row, cluster_rank() ^ 1)[t] = x[i];
    mbarrier_arrive(&written);
    mbarrier_wait_cluster(&written, 0);  // <-- here
    y[i] = row[t];
    cluster_sync();
}

extern "C" __global__ __cluster_dims__(2, 1, 1) void good(const float* x, float* y) {
    __shared__ float row[32];
    __shared__ Mbarrier written;
    int t = threadIdx.x, i = 32 * blockIdx.x + t;
    if (t == 0) {
        mbarrier_init(&written, 64);
        fence_mbarrier_init();
    }
    cluster_sync();
    map_shared_rank(row, cluster_rank() ^ 1)[t] = x[i];
    for (int rank = 0; rank < 2; ++rank) mbarrier_arrive_remote(&written, rank);
    mbarrier_wait_cluster(&written, 0);
    y[i] = row[t];
    cluster_sync();
}
