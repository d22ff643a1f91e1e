// Blocks that share a head: each leaves its part, the one that comes last puts all together.
#pragma once
#include "group_rows.cuh"

// parts: (2 * blocks, ROWS, QUADS) undivided outputs; stats: (2 * blocks, ROWS) pairs of maximum and sum. Block i puts the first item that it shares
// with others at 2 * i, another one at 2 * i + 1. arrived: a counter for each block, all zero before and after the launch.
struct Parts {
    float4* outs;
    float2* stats;
    unsigned* arrived;
};

// Puts what the block's warps have in `meeting` for tiles `tile` to `until` - 1 of `item` together: into `out` (the item's rows) if that is all of it,
// else into the block's part, and into `out` all parts of the item if this one is the last to come. All threads call, __syncthreads() before and after.
template <class T, class C, class Tiling>
__device__ __forceinline__ void settle(Meeting<T, C, Tiling>& meeting, const Tiles& tiles, const Tiles::Item& item, int tile,
                                       int until, int rows, T* out, Parts parts) {
    constexpr int ROWS = Tiling::ROWS, QUADS = Tiling::HEAD_DIM / 4, AT_A_TIME = 8;
    const int block = blockIdx.x, first = tiles.first(block);
    const bool whole = tile == item.first && until == item.end;
    const long long slot = 2LL * block + (tile != first);
    for (int at = threadIdx.x; at < rows * QUADS; at += Tiling::THREADS) {
        const int row = at / QUADS, quad = at % QUADS;
        const Part part = meeting.all(row, quad);
        if (whole) {
            part.store(out + at * 4);
        } else {
            __stcg(&parts.outs[(slot * ROWS + row) * QUADS + quad], part.out);
            if (quad == 0) __stcg(&parts.stats[slot * ROWS + row], float2{part.max, part.sum});
        }
    }
    if (whole) return;

    const int from = tiles.owner(item.first), to = tiles.owner(item.end - 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        meeting.last = atomicAdd(&parts.arrived[from], 1u) == static_cast<unsigned>(to - from);
        if (meeting.last) parts.arrived[from] = 0;  // for the next launch
        __threadfence();
    }
    __syncthreads();
    if (!meeting.last) return;
    const int first_slot = 2 * from + (tiles.first(from) != item.first);  // the item may be the second one of the block where it begins
    for (int at = threadIdx.x; at < rows * QUADS; at += Tiling::THREADS) {
        const int row = at / QUADS, quad = at % QUADS;
        Part merged;
        for (int i = from; i <= to; i += AT_A_TIME) {
            float2 stats[AT_A_TIME];
            float4 outs[AT_A_TIME];
#pragma unroll
            for (int j = 0; j < AT_A_TIME; ++j) {
                const long long of = (i + j == from ? first_slot : 2LL * (i + j)) * ROWS + row;
                const bool there = i + j <= to;
                stats[j] = there ? __ldcg(&parts.stats[of]) : float2{NOTHING_SEEN, 0.0f};
                outs[j] = there ? __ldcg(&parts.outs[of * QUADS + quad]) : float4{0.0f, 0.0f, 0.0f, 0.0f};
            }
            merged.add(stats, outs);
        }
        merged.store(out + at * 4);
    }
}
