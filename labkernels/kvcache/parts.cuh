// Blocks that share a head: each leaves its part in memory, the one that comes last puts all together.
#pragma once
#include "group_rows.cuh"

constexpr int PARTS_AT_A_TIME = 16;  // read before the first is needed: one wait for L2

// outs: (blocks, ROWS, QUADS) undivided outputs; stats: (blocks, ROWS) pairs of maximum and sum; arrived: a counter for each block, all zero before
// and after the launch. An item uses those of its blocks, and the counter of its first one.
struct Parts {
    float4* outs;
    float2* stats;
    unsigned* arrived;
};

// Is this block the last of `count` that come to a counter? It sees what the others have written. All threads call; `last` is in shared memory.
__device__ __forceinline__ bool last_to_come(unsigned* arrived, int count, int& last) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(arrived, 1u) == static_cast<unsigned>(count - 1);
        if (last) *arrived = 0;  // for the next launch
        __threadfence();
    }
    __syncthreads();
    return last;
}

// `count` parts in order; they lie out_step and stats_step apart.
__device__ __forceinline__ Part all_parts(const float4* outs, const float2* stats, int count, long long out_step, long long stats_step) {
    Part merged;
    for (int i = 0; i < count; i += PARTS_AT_A_TIME) {
        float2 some_stats[PARTS_AT_A_TIME];
        float4 some_outs[PARTS_AT_A_TIME];
#pragma unroll
        for (int j = 0; j < PARTS_AT_A_TIME; ++j) {
            const bool there = i + j < count;
            some_stats[j] = there ? __ldcg(stats + (i + j) * stats_step) : float2{NOTHING_SEEN, 0.0f};
            some_outs[j] = there ? __ldcg(outs + (i + j) * out_step) : float4{0.0f, 0.0f, 0.0f, 0.0f};
        }
        merged.add(some_stats, some_outs);
    }
    return merged;
}

// Puts what the block's warps have in `meeting` together: into `out` (the item's rows) if the item has no other split, else into the block's part, and
// into `out` all parts of the item, in order, if this is the last to come. All threads call, after __syncthreads().
template <class T, class C, class Tiling>
__device__ __forceinline__ void settle(Meeting<T, C, Tiling>& meeting, const Splits::Item& item, int rows, T* out, Parts parts) {
    constexpr int ROWS = Tiling::ROWS, QUADS = Tiling::HEAD_DIM / 4;
    const long long block = blockIdx.x, first = block - item.split;
    for (int at = threadIdx.x; at < rows * QUADS; at += Tiling::THREADS) {
        const int row = at / QUADS, quad = at % QUADS;
        const Part part = meeting.all(row, quad);
        if (item.splits == 1) {
            part.store(out + at * 4);
        } else {
            __stcg(&parts.outs[(block * ROWS + row) * QUADS + quad], part.out);
            if (quad == 0) __stcg(&parts.stats[block * ROWS + row], float2{part.max, part.sum});
        }
    }
    if (item.splits == 1 || !last_to_come(&parts.arrived[first], item.splits, meeting.last)) return;
    for (int at = threadIdx.x; at < rows * QUADS; at += Tiling::THREADS) {
        const float4* outs = &parts.outs[first * ROWS * QUADS + at];
        all_parts(outs, &parts.stats[first * ROWS + at / QUADS], item.splits, ROWS * QUADS, ROWS).store(out + at * 4);
    }
}
