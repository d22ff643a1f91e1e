// Barrier divergence: a cooperative group synchronises without one of its members.
//   Mistake   tile.sync() inside an if that only lane 0 of each 8-thread tile takes.
//   Why       A group's sync() is a barrier of all its threads, whatever the group is called.
//   Fix       Synchronise behind the if.
//
// expect: barrier_divergence
// launch: grid=1 block=32 args=x[32],y[32]
// block: 0
// result: y = x.view(4, 8)[:, :1].expand(4, 8).flatten()
#include <cooperative_groups.h>
namespace cg = cooperative_groups;

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float head[4];
    auto tile = cg::tiled_partition<8>(cg::this_thread_block());
    int t = threadIdx.x;
    if (tile.thread_rank() == 0) {
        head[t / 8] = x[t];
        tile.sync();  // <-- here
        y[t] = head[t / 8];
    }
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float head[4];
    auto tile = cg::tiled_partition<8>(cg::this_thread_block());
    int t = threadIdx.x;
    if (tile.thread_rank() == 0) {
        head[t / 8] = x[t];
    }
    tile.sync();
    y[t] = head[t / 8];
}
