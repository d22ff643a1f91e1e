// How the blocks of a cluster that share a head merge: through each other's shared memory. v5 and the engine's attention (attend.cu) end so.
#pragma once
#include "cluster.cuh"
#include "group_rows.cuh"

constexpr int MAX_CLUSTER = 8;

// What the blocks of a cluster hand to each other: each puts together a slice of the output, and gets every block's part of it, one behind the other.
template <int QUADS>  // of a whole output
struct Slices {
    float4 out[QUADS + MAX_CLUSTER];
    float2 stats[QUADS + MAX_CLUSTER];
};

// What the block's warps have put into `meeting`, of `rows` rows, with that of the cluster's other blocks, to `target`: rows of HEAD_DIM. Between the
// kernel's beginning and this, all blocks of a cluster have said cluster_arrive().
template <class T, class C, class Tiling>
__device__ __forceinline__ void settle_cluster(Meeting<T, C, Tiling>& meeting, Slices<Tiling::ROWS * Tiling::HEAD_DIM / 4>& slices, int rows, T* target) {
    constexpr int QUADS = Tiling::HEAD_DIM / 4;
    const int blocks = gridDim.x, rank = blockIdx.x;
    if (blocks > 1) cluster_wait();  // all have started
    const int slice = (rows * QUADS + blocks - 1) / blocks;
    for (int at = threadIdx.x; at < rows * QUADS; at += Tiling::THREADS) {
        const Part part = meeting.all(at / QUADS, at % QUADS);
        if (blocks == 1) {
            part.store(target + 4 * at);
        } else {
            *map_shared_rank(&slices.out[rank * slice + at % slice], at / slice) = part.out;
            *map_shared_rank(&slices.stats[rank * slice + at % slice], at / slice) = {part.max, part.sum};
        }
    }
    if (blocks == 1) return;
    cluster_sync();
    for (int at = threadIdx.x; at < slice && rank * slice + at < rows * QUADS; at += Tiling::THREADS) {
        Part merged;
        float2 stats[MAX_CLUSTER];
        float4 outs[MAX_CLUSTER];
#pragma unroll
        for (int i = 0; i < MAX_CLUSTER; ++i) {
            stats[i] = i < blocks ? slices.stats[i * slice + at] : float2{NOTHING_SEEN, 0.0f};
            outs[i] = i < blocks ? slices.out[i * slice + at] : float4{0.0f, 0.0f, 0.0f, 0.0f};
        }
        merged.add(stats, outs);
        merged.store(target + 4 * (rank * slice + at));
    }
}
