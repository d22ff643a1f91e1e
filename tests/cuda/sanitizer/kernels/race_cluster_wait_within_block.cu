// Race: a thread waits for news from another block with a wait that is meant for its own.
//   Mistake   Block 0 writes into block 1's row and arrives at its mbarrier; block 1 waits with mbarrier_wait().
//   Why       That wait takes up what threads of the same block have done. It ends, but the row need not be visible yet.
//   Fix       mbarrier_wait_cluster(), which takes up what the whole cluster has done.
//
// expect: race
// launch: grid=2 block=32 args=x[32],y[32]
// array: row
// block: 1
// result: y = x.flip(0)
#include "cluster.cuh"

extern "C" __global__ __cluster_dims__(2, 1, 1) void bad(const float* x, float* y) {
    __shared__ float row[32];
    __shared__ Mbarrier full;
    int t = threadIdx.x;
    if (t == 0) {
        mbarrier_init(&full, 32);
        fence_mbarrier_init();
    }
    cluster_sync();
    if (cluster_rank() == 0) {
        map_shared_rank(row, 1)[t] = x[t];  // <-- here
        mbarrier_arrive_remote(&full, 1);
    } else {
        mbarrier_wait(&full, 0);
        y[t] = row[31 - t];  // <-- here
    }
    cluster_sync();
}

extern "C" __global__ __cluster_dims__(2, 1, 1) void good(const float* x, float* y) {
    __shared__ float row[32];
    __shared__ Mbarrier full;
    int t = threadIdx.x;
    if (t == 0) {
        mbarrier_init(&full, 32);
        fence_mbarrier_init();
    }
    cluster_sync();
    if (cluster_rank() == 0) {
        map_shared_rank(row, 1)[t] = x[t];
        mbarrier_arrive_remote(&full, 1);
    } else {
        mbarrier_wait_cluster(&full, 0);
        y[t] = row[31 - t];
    }
    cluster_sync();
}
