// How one launch shares out all tokens of all sequences, whose lengths only the GPU knows.
//
// Each head of each sequence is an item of ceil(length / 16) tiles of 16 tokens, at least one. It is cut into splits of at most `each` tiles, one a
// block: as few tiles as leave no more splits than there are blocks. So no block has two items, and none more than `each` tiles. Which of them a split
// has is up to the kernel.
#pragma once
#include "warp.cuh"

constexpr int CHUNK = 16;  // tokens that a warp takes at a time

struct Splits {
    const int* lengths;
    int batch, heads;        // `heads` items a sequence, of equal length
    int each, count;         // tiles of a split at most; splits

    __device__ static int ceil_div(int a, int b) { return (a + b - 1) / b; }
    __device__ static int tiles(int length) { return max(1, ceil_div(length, CHUNK)); }
    __device__ int splits(int length) const { return ceil_div(tiles(length), each); }

    // All lanes of a warp call, here and in find(). The grid has `warps` warps a block, and at least a block for each item; `resident` blocks run at a
    // time. They are what is dealt out, and where there are more items, so many besides: for sequences longer than the others.
    __device__ Splits(const int* lengths, int batch, int heads, int warps, int resident)
        : lengths(lengths), batch(batch), heads(heads), each(1) {
        count = all_splits();  // for now, tiles
        const int items = batch * heads, blocks = min(static_cast<int>(gridDim.x), items <= resident ? resident : items + resident);
        int wanted = ceil_div(count, blocks);
        do {
            each = ceil_div(wanted, warps) * warps;  // all warps have something to do
            count = all_splits();
            wanted = max(each + 1, static_cast<int>(static_cast<long long>(each) * count / blocks));
        } while (count > blocks);
    }
    __device__ int all_splits() const {
        int sum = 0;
        for (int b = lane_id(); b < batch; b += 32) sum += splits(lengths[b]);
        return heads * warp_sum(sum);
    }

    struct Item {
        int batch, head, length;
        int split, splits;  // this one, of how many of the item
    };
    // What block `block` has, which is less than count.
    __device__ Item find(int block) const {
        int before = 0;
        for (int base = 0;; base += 32) {
            const int b = base + lane_id(), length = b < batch ? lengths[b] : 0, own = b < batch ? heads * splits(length) : 0;
            int end = own;  // sum of own over this lane and those before it
#pragma unroll
            for (int distance = 1; distance < 32; distance *= 2) {
                const int other = __shfl_up_sync(FULL_WARP, end, distance);
                if (lane_id() >= distance) end += other;
            }
            const unsigned holders = __ballot_sync(FULL_WARP, block < before + end);
            if (holders == 0 && base + 32 < batch) {
                before += __shfl_sync(FULL_WARP, end, 31);
                continue;
            }
            const int lane = max(0, __ffs(holders) - 1);
            const int its_length = __shfl_sync(FULL_WARP, length, lane), its_splits = splits(its_length);
            const int at = block - before - __shfl_sync(FULL_WARP, end - own, lane);
            return {base + lane, at / its_splits, its_length, at % its_splits, its_splits};
        }
    }
};
