// Where a block that owns some keys goes: from tile to tile of the queries that see any of them, of all heads that share them.
#pragma once
#include "backward.cuh"

struct Place { int head, tile; };

// Which head and tile of keys a block has under a causal mask, where the first keys have the most queries. Head after head, the last head's
// longest block would begin near the end, and still be at work when all others are through. So those of several heads, BLOCKS_IN_ORDER
// together, go by length: at S = 1024 with 32 heads that makes v4 1.4 times as fast.
constexpr unsigned BLOCKS_IN_ORDER = 512;

__device__ __forceinline__ Place longest_first() {
    const unsigned heads = max(1u, BLOCKS_IN_ORDER / gridDim.x), first_head = blockIdx.y / heads * heads, here = min(heads, gridDim.y - first_head);
    const unsigned place = (blockIdx.y - first_head) * gridDim.x + blockIdx.x;
    return Place{static_cast<int>(first_head + place % here), static_cast<int>(place / here)};
}

// The same for all threads, so in shared memory: registers are scarce.
struct Walk {
    Bounds bounds;
    Tiles tiles;
    RowTiles rows;
    int start, steps, batch, kv_head, first_key;
    Place places[4];  // of the last step, this one, the next two

    __device__ Place next(Place at) const {
        const int tile = at.tile + 1 < tiles.end ? at.tile + 1 : tiles.first;
        return Place{at.head + (tile == start), tile};
    }

    // Blocks of a head begin at different queries, so that they do not all add to the same sums of dq. In deterministic mode the blocks with
    // the last keys come first, each at the first queries that see it, which is the order in which the sums of dq want them.
    template <int QUERIES, int KEYS, bool DETERMINISTIC, class Problem>
    __device__ void begin(const int* cu_seqlens_q, const int* cu_seqlens_k, const Problem& problem, int first_batch) {
        const int kv_heads = problem.heads / problem.group;
        Place own{static_cast<int>(blockIdx.y), static_cast<int>(DETERMINISTIC ? gridDim.x - 1 - blockIdx.x : blockIdx.x)};
        if (!DETERMINISTIC && problem.window_right < problem.kv_len) own = longest_first();
        batch = own.head / kv_heads + first_batch;
        kv_head = own.head % kv_heads;
        first_key = own.tile * KEYS;
        bounds = bounds_of(cu_seqlens_q, cu_seqlens_k, batch, problem.seq_len, problem.kv_len);
        const Window window(bounds.seq_len, bounds.kv_len, problem.window_left, problem.window_right);
        tiles = first_key < bounds.kv_len ? window.queries<QUERIES, KEYS>(first_key) : Tiles{0, 0};
        const int count = max(0, tiles.end - tiles.first);
        rows = {cu_seqlens_q ? bounds.first_query / QUERIES + batch : 0, problem.row_tiles, cu_seqlens_q ? 0 : batch * problem.heads};
        start = tiles.first + (DETERMINISTIC || count == 0 ? 0 : own.tile % count);
        steps = problem.group * count;
        places[0] = {kv_head * problem.group, start};
        places[1] = next(places[0]);
    }
};
