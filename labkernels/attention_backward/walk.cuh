// Where a block that owns some keys goes: from tile to tile of the queries that see any of them, of all heads that share them.
#pragma once
#include "backward.cuh"
#include "cp_async.cuh"

struct Place { int head, tile; };

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

    // All threads call it. Whether the block has keys at all.
    template <int QUERIES, int KEYS, bool DETERMINISTIC, class Problem>
    __device__ bool begin(const int* cu_seqlens_q, const int* cu_seqlens_k, const Problem& problem, int first_batch) {
        if (threadIdx.x == 0) find<QUERIES, KEYS, DETERMINISTIC>(cu_seqlens_q, cu_seqlens_k, problem, first_batch);
        __syncthreads();
        return first_key < bounds.kv_len;
    }

    template <class Problem>
    __device__ Window window(const Problem& problem) const {
        return Window(bounds.seq_len, bounds.kv_len, problem.window_left, problem.window_right);
    }

    // How many blocks add to the sums of dq of `tile` before this one does, in deterministic mode.
    template <int QUERIES, int KEYS, class Problem>
    __device__ int before(const Problem& problem, int tile) const {
        return window(problem).template keys<QUERIES, KEYS>(tile * QUERIES).end - 1 - first_key / KEYS;
    }

    // Waits for the tile of `step`, and for ds of the one before; then everybody is through with that one's q and grad, and the next is asked for.
    template <class CopyTile>
    __device__ void advance(int step, const CopyTile& copy_tile) {
        cp_async_wait<0>();
        __syncthreads();
        if (step + 1 < steps) copy_tile(step + 1);
        cp_async_commit();
        if (threadIdx.x == 0) places[(step + 2) % 4] = next(places[(step + 1) % 4]);
    }

private:
    // Blocks of a head begin at different queries, so that they do not all add to the same sums of dq. In deterministic mode the blocks with
    // the last keys come first, each at the first queries that see it, which is the order in which the sums of dq want them.
    template <int QUERIES, int KEYS, bool DETERMINISTIC, class Problem>
    __device__ void find(const int* cu_seqlens_q, const int* cu_seqlens_k, const Problem& problem, int first_batch) {
        const int kv_heads = problem.heads / problem.group;
        batch = blockIdx.y / kv_heads + first_batch;
        kv_head = blockIdx.y % kv_heads;
        first_key = (DETERMINISTIC ? gridDim.x - 1 - blockIdx.x : blockIdx.x) * KEYS;
        bounds = bounds_of(cu_seqlens_q, cu_seqlens_k, batch, problem.seq_len, problem.kv_len);
        const Window window(bounds.seq_len, bounds.kv_len, problem.window_left, problem.window_right);
        tiles = first_key < bounds.kv_len ? window.queries<QUERIES, KEYS>(first_key) : Tiles{0, 0};
        const int count = max(0, tiles.end - tiles.first);
        rows = {cu_seqlens_q ? bounds.first_query / QUERIES + batch : 0, problem.row_tiles, cu_seqlens_q ? 0 : batch * problem.heads};
        start = tiles.first + (DETERMINISTIC || count == 0 ? 0 : blockIdx.x % count);
        steps = problem.group * count;
        places[0] = {kv_head * problem.group, start};
        places[1] = next(places[0]);
    }
};
