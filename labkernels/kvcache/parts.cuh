// Blocks that share a head: each leaves its part, the one that comes last puts all together.
#pragma once
#include "group_rows.cuh"

// outs: (blocks, ROWS, QUADS) undivided outputs; stats: (blocks, ROWS) pairs of maximum and sum; arrived: a counter for each block, all zero before
// and after the launch. An item uses those of its blocks, and the counter of its first one.
struct Parts {
    float4* outs;
    float2* stats;
    unsigned* arrived;
};

// Puts what the block's warps have in `meeting` together: into `out` (the item's rows) if the item has no other split, else into the block's part, and
// into `out` all parts of the item, in order, if this is the last to come. All threads call, after __syncthreads().
template <class T, class C, class Tiling>
__device__ __forceinline__ void settle(Meeting<T, C, Tiling>& meeting, const Splits::Item& item, int rows, T* out, Parts parts) {
    constexpr int ROWS = Tiling::ROWS, QUADS = Tiling::HEAD_DIM / 4, AT_A_TIME = 8;
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
    if (item.splits == 1) return;

    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        meeting.last = atomicAdd(&parts.arrived[first], 1u) == static_cast<unsigned>(item.splits - 1);
        if (meeting.last) parts.arrived[first] = 0;  // for the next launch
        __threadfence();
    }
    __syncthreads();
    if (!meeting.last) return;
    for (int at = threadIdx.x; at < rows * QUADS; at += Tiling::THREADS) {
        const int row = at / QUADS, quad = at % QUADS;
        Part merged;
        for (int i = 0; i < item.splits; i += AT_A_TIME) {
            float2 stats[AT_A_TIME];
            float4 outs[AT_A_TIME];
#pragma unroll
            for (int j = 0; j < AT_A_TIME; ++j) {
                const long long of = (first + i + j) * ROWS + row;
                const bool there = i + j < item.splits;
                stats[j] = there ? __ldcg(&parts.stats[of]) : float2{NOTHING_SEEN, 0.0f};
                outs[j] = there ? __ldcg(&parts.outs[of * QUADS + quad]) : float4{0.0f, 0.0f, 0.0f, 0.0f};
            }
            merged.add(stats, outs);
        }
        merged.store(out + at * 4);
    }
}
