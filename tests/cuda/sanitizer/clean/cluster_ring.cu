// Clean: numbers travel around a cluster, handed on by remote arrivals, and a block leaves when nobody needs it any more.
//
// expect: clean
// launch: grid=8 block=32 args=x[8,32],y[8,32]
// result: y = x.view(2, 4, 32).sum(1, keepdim=True).expand(2, 4, 32).reshape(8, 32)
#include "cluster.cuh"

extern "C" __global__ __cluster_dims__(4, 1, 1) void good(const float* x, float* y) {
    __shared__ float slot[2][32];
    __shared__ Mbarrier full[2], empty[2];
    const int t = threadIdx.x, rank = cluster_rank(), next = (rank + 1) % 4, before = (rank + 3) % 4;
    if (t == 0) {
        for (int s = 0; s < 2; ++s) mbarrier_init(&full[s], 32), mbarrier_init(&empty[s], 32);
        fence_mbarrier_init();
    }
    cluster_arrive();
    float value = x[32 * blockIdx.x + t], sum = value;
    cluster_wait();
    for (int i = 0; i < 3; ++i) {
        const int s = i % 2, parity = i / 2;
        mbarrier_wait_cluster(&empty[s], parity ^ 1);
        map_shared_rank(slot[s], next)[t] = value;
        mbarrier_arrive_remote(&full[s], next);
        mbarrier_wait_cluster(&full[s], parity);
        value = slot[s][t];
        mbarrier_arrive_remote(&empty[s], before);
        sum += value;
    }
    mbarrier_wait_cluster(&empty[1], 0);
    mbarrier_wait_cluster(&empty[0], 1);  // the next block has read all that came from here, and this one's barriers are done with
    y[32 * blockIdx.x + t] = sum;
}
