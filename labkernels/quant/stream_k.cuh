// How v4 and v5 share out the tiles of a result ("stream-K"): whole ones as long as there is one for every block; the rest, cut along k into
// equal parts, one a block, wherever a tile ends. Parts of a tile go to memory, and the block that comes last adds them, in the order of k.
#pragma once
#include "named_barrier.cuh"

// What a block does: `whole` tiles are dealt out one by one, the rest in equal parts.
struct Item {
    int tile, first, last;  // steps of k
};
struct Schedule {
    int steps, whole, parts, index;
    int each, longer;  // a part has `each` units, steps of a tile of the rest; the first `longer` parts one more
    int next, end;

    __device__ Schedule(int tiles, int whole_tiles, int steps_of_k) : steps(steps_of_k), whole(whole_tiles), parts(gridDim.x), index(blockIdx.x) {
        const int units = (tiles - whole_tiles) * steps_of_k;
        each = units / parts;
        longer = units - each * parts;
        next = begin_of(blockIdx.x);
        end = begin_of(blockIdx.x + 1);
    }
    __device__ int begin_of(int block) const { return block * each + min(block, longer); }
    __device__ bool item(Item& item) {
        if (index < whole) {
            item = {index, 0, steps};
            index += parts;
            return true;
        }
        if (next >= end) return false;
        const int of_rest = next / steps, first = next - of_rest * steps;
        item = {whole + of_rest, first, min(steps, first + end - next)};
        next += item.last - item.first;
        return true;
    }
    // The block whose part has this unit.
    __device__ int block_of(int unit) const {
        const int in_longer = longer * (each + 1);
        return unit < in_longer ? unit / (each + 1) : longer + (unit - in_longer) / each;
    }
    // Where in memory a block's part of a tile is: it has one of the tile in which it begins, and may have one of another.
    __device__ int slot(int block, int tile) const { return 2 * block + (begin_of(block) < (tile - whole) * steps); }
};

struct Meeting {
    int first, last;  // the blocks that have parts of a tile
    bool is_last;     // has this one come after all others? Then it sees what they wrote.
};

// All `threads` threads of named barrier `barrier` have written their part of `tile` to memory. The counters are zeros before and afterwards.
__device__ __forceinline__ Meeting meet(const Schedule& schedule, int tile, int* counters, int& arrived_before, int barrier, int threads) {
    __threadfence();
    named_barrier_sync(barrier, threads);
    const int first_unit = (tile - schedule.whole) * schedule.steps;
    Meeting meeting{schedule.block_of(first_unit), schedule.block_of(first_unit + schedule.steps - 1), false};
    if (threadIdx.x == 0) {
        arrived_before = atomicAdd(&counters[tile - schedule.whole], 1);
        if (arrived_before == meeting.last - meeting.first) counters[tile - schedule.whole] = 0;
    }
    named_barrier_sync(barrier, threads);
    meeting.is_last = arrived_before == meeting.last - meeting.first;
    named_barrier_sync(barrier, threads);
    __threadfence();
    return meeting;
}
