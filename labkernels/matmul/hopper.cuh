// What the Hopper matmuls share: a block's shared memory, the ring of stages, the order of the tiles, and how a tile of C leaves.
#pragma once
#include "epilogue.cuh"
#include "fence.cuh"
#include "ldmatrix.cuh"
#include "named_barrier.cuh"
#include "pack.cuh"
#include "tma.cuh"
#include "warpgroups.cuh"

// A stage holds ROWS x DEPTH of A and DEPTH x COLUMNS of B. Either lies with k dense, as rows of 128 bytes of k, or with m (n) dense, as
// panels of 128 bytes of m (n), each DEPTH rows. A slab is a piece of C on its way out.
template <class T, int ROWS, int COLUMNS, int STAGES, int SLABS>
struct Layout {
    static constexpr int DEPTH = ROW_BYTES / sizeof(T);
    static constexpr int A_BYTES = ROWS * ROW_BYTES, B_BYTES = COLUMNS * ROW_BYTES, STAGE_BYTES = A_BYTES + B_BYTES;
    static constexpr int SLAB_BYTES = 64 * ROW_BYTES;
    char* base;

    __device__ explicit Layout(char* shared) : base(shared) {}
    __device__ char* a(int stage) const { return base + stage * STAGE_BYTES; }
    __device__ char* b(int stage) const { return a(stage) + A_BYTES; }
    __device__ char* slab(int i) const { return base + STAGES * STAGE_BYTES + i * SLAB_BYTES; }
    __device__ Mbarrier* full() const { return reinterpret_cast<Mbarrier*>(slab(SLABS)); }
    __device__ Mbarrier* empty() const { return full() + STAGES; }
};

// The order of the tiles: bands of `band` tiles of rows, in which neighbours in time share rows of A and columns of B.
struct Tile {
    int row, column;
    __device__ Tile(int index, int row_tiles, int column_tiles, int band) {
        const int in_band = band * column_tiles, first = index / in_band * band;
        const int height = min(band, row_tiles - first);
        row = first + index % in_band % height;
        column = index % in_band / height;
    }
};

// A warpgroup's 64 x COLUMNS sums `d`, laid out as wgmma leaves them, become 64 x COLUMNS elements of C at (row, column): rounded to T,
// written as slabs to shared memory, of which the warpgroup has SLABS, and stored from there by the copy engine, which clips them to C.
// finish(sums, row, col) has the last word on two neighbouring sums. `next` counts the slabs written so far.
template <class T, int COLUMNS, int SLABS, class Finish>
__device__ __forceinline__ void store_tile(const TensorMap& c, char* slabs, int& next, const float (&d)[COLUMNS / 2], int row, int column,
                                           int warpgroup, Finish finish) {
    constexpr int WIDTH = COLUMNS % 64 ? 32 : 64;
    const int thread = threadIdx.x % GROUP, lane = threadIdx.x % 32, warp_row = thread / 32 * 16;
#pragma unroll
    for (int slab = 0; slab < COLUMNS / WIDTH; ++slab, ++next) {
        char* staged = slabs + next % SLABS * (64 * ROW_BYTES);
        if (thread == 0) tma_wait_read<SLABS - 1>();
        named_barrier_sync(1 + warpgroup, GROUP);
#pragma unroll
        for (int pair = 0; pair < WIDTH / 16; ++pair) {  // of blocks of 8 columns
            unsigned packed[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = (slab * WIDTH + 16 * pair) / 2 + 2 * i;
                float sums[2] = {d[at], d[at + 1]};
                finish(sums, row + warp_row + lane / 4 + i % 2 * 8, column + slab * WIDTH + 16 * pair + i / 2 * 8 + lane % 4 * 2);
                packed[i] = pack_pair<T>(sums[0], sums[1]);
            }
            const int staged_row = warp_row + lane % 16, piece = 2 * pair + lane / 16;
            const int swizzled = WIDTH == 64 ? piece ^ staged_row % 8 : piece ^ staged_row / 2 % 4;
            stmatrix(staged + staged_row * (2 * WIDTH) + (swizzled << 4), packed);
        }
        fence_proxy_async_shared();
        named_barrier_sync(1 + warpgroup, GROUP);
        if (thread == 0) {
            tma_store(c, staged, column + slab * WIDTH, row);
            tma_commit();
        }
    }
}
