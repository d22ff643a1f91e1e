// How v4 and v5 share out the tiles of a result ("stream-K"): whole ones as long as there is one for every block; the rest, cut along k
// into equal parts, one a block, wherever a tile ends. Parts of a tile go to memory, and the block that comes last adds them, in the
// order of k. A block does a tile's later parts before its whole tiles, and a tile's first part after them. So the others of the tile
// have long come when its first part is done; that one is never written, only the others are read.
#pragma once
#include "named_barrier.cuh"

struct Item {
    int tile, first, last;  // steps of k
};
// The blocks that have parts of a tile, and the tile's number among those of the rest.
struct Members {
    int first, last, counter;
};

// What a block does: `whole` tiles are dealt out one by one, the rest in `parts` parts, of which the first blocks have one each.
struct Schedule {
    int steps, whole, blocks, index;
    int units, parts;  // of the rest: steps of its tiles, and in how many parts they are cut
    int next, end;

    // `splits` blocks in a row have the same items.
    __device__ Schedule(int tiles, int whole_tiles, int steps_of_k, int most_parts = 1 << 30, int splits = 1)
        : steps(steps_of_k), whole(whole_tiles), blocks(gridDim.x / splits), index(blockIdx.x / splits) {
        units = (tiles - whole_tiles) * steps_of_k;
        parts = max(1, min(min(blocks, most_parts), units));
        next = begin_of(index);
        end = begin_of(index + 1);
    }
    // Where tiles and parts are in the ratio of small numbers, many of the parts begin where a tile does.
    __device__ int begin_of(int block) const { return block < parts ? (block * units + parts - 1) / parts : units; }
    __device__ int block_of(int unit) const { return unit * parts / units; }  // whose part has this unit

    __device__ bool item(Item& item) {
        const int of_rest = next / steps, first = next - of_rest * steps;
        if (index < whole && (first == 0 || next >= end)) {
            item = {index, 0, steps};
            index += blocks;
            return true;
        }
        if (next >= end) return false;
        item = {whole + of_rest, first, min(steps, first + end - next)};
        next += item.last - item.first;
        return true;
    }
    __device__ Members members(int tile) const {
        const int of_rest = tile - whole;
        return {block_of(of_rest * steps), block_of(of_rest * steps + steps - 1), of_rest};
    }
    // Where in memory a block's part of a tile is: it has one of the tile in which it begins, and may have one of another.
    __device__ int slot(int block, int tile) const { return 2 * block + (begin_of(block) < (tile - whole) * steps); }
};

// Have all blocks come but one? `arrives` counts this one first. The counters are zeros before and afterwards. All `threads` threads of
// named barrier `barrier` call it. A fence of one thread is enough: it speaks for all whom a barrier has brought together with it, before
// and after.
__device__ __forceinline__ bool all_came(const Members& members, int* counters, bool arrives, int& arrived_before, int barrier,
                                         int threads) {
    named_barrier_sync(barrier, threads);
    if (threadIdx.x == 0) {
        __threadfence();
        arrived_before = atomicAdd(&counters[members.counter], arrives ? 1 : 0);
        if (arrived_before == members.last - members.first) counters[members.counter] = 0;
        __threadfence();
    }
    named_barrier_sync(barrier, threads);
    return arrived_before == members.last - members.first;
}
