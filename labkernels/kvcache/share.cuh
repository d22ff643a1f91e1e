// How one launch shares out all tokens of all sequences, whose lengths only the GPU knows.
//
// Each head of each sequence is an item of ceil(length / 16) tiles of 16 tokens, at least one. All items' tiles stand in one row, and each block takes
// an equal stretch of it, wherever items begin and end: no block has a tile more than another has but one.
#pragma once
#include "warp.cuh"

constexpr int CHUNK = 16;  // tokens that a warp takes at a time

struct Tiles {
    const int* lengths;
    int batch, heads;  // `heads` items a sequence, of equal length
    int total, blocks;

    __device__ static int of(int length) { return max(1, (length + CHUNK - 1) / CHUNK); }

    // All lanes of a warp call, here and in find(). A block gets at least `warps` tiles. `resident` blocks run at a time; more of them are used, so that
    // the fast ones can take over from the slow, once that leaves each of them `least` tiles.
    __device__ Tiles(const int* lengths, int batch, int heads, int warps, int resident, int least) : lengths(lengths), batch(batch), heads(heads) {
        int sum = 0;
        for (int b = lane_id(); b < batch; b += 32) sum += of(lengths[b]);
        total = heads * warp_sum(sum);
        const int available = static_cast<int>(gridDim.x);
        blocks = available <= resident ? available : resident * max(1, min(available / resident, total / (resident * least)));
        blocks = max(1, min(blocks, total / warps));
    }
    // The tiles of block i: first(i) to first(i + 1) - 1.
    __device__ int first(int block) const { return block * (total / blocks) + min(block, total % blocks); }
    __device__ int owner(int tile) const {
        const int each = total / blocks, longer = total % blocks, of_longer = longer * (each + 1);
        return tile < of_longer ? tile / (each + 1) : longer + (tile - of_longer) / max(1, each);
    }

    struct Item {
        int batch, head, length;
        int first, end;  // its tiles
    };
    __device__ Item find(int tile) const {
        int before = 0;
        for (int base = 0;; base += 32) {
            const int b = base + lane_id(), length = b < batch ? lengths[b] : 0, own = b < batch ? heads * of(length) : 0;
            int end = own;  // sum of own over this lane and those before it
#pragma unroll
            for (int distance = 1; distance < 32; distance *= 2) {
                const int other = __shfl_up_sync(FULL_WARP, end, distance);
                if (lane_id() >= distance) end += other;
            }
            const unsigned holders = __ballot_sync(FULL_WARP, tile < before + end);
            if (holders == 0 && base + 32 < batch) {
                before += __shfl_sync(FULL_WARP, end, 31);
                continue;
            }
            const int lane = max(0, __ffs(holders) - 1);
            const int its_length = __shfl_sync(FULL_WARP, length, lane);
            const int start = before + __shfl_sync(FULL_WARP, end - own, lane), each = of(its_length), head = (tile - start) / each;
            return {base + lane, head, its_length, start + head * each, start + (head + 1) * each};
        }
    }
};
