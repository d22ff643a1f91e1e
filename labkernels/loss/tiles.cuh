// The walk of matmul v7 over tiles of A B, for kernels that do something of their own with the sums: a thread of one warpgroup asks the copy engine for
// stages of 64 of k, two warpgroups multiply them and hand 64 rows of sums at a time to `finish`. What `finish` takes is the question here: exponentials of
// a tile, or a tile of a matrix after 512 of k, are an eighth to a third of a tile's time, and nobody multiplies meanwhile if both finish together.
//
//   COLUMNS 256   both warpgroups at a tile of 128 x 256, a half each; the second begins LAG stages late and stays that late, so that one multiplies
//                 alone, at twice the pace, while the other one begins to finish
//   COLUMNS 128   a tile of 128 x 128 each, in turns: one multiplies while the other one finishes. A third more bytes come out of L2; with 192, a ninth.
#pragma once
#include "../matmul/hopper.cuh"
#include "setmaxnreg.cuh"
#include "wgmma.cuh"

constexpr int TILE_ROWS = 128, CONSUMERS = 2, TILE_SLABS = 4, OWN_SLABS = TILE_SLABS / CONSUMERS, LAG_BARRIER = 3, TURN_BARRIER = 4;  // and 5
template <int COLUMNS>
constexpr int tile_stages = COLUMNS == 128 ? 6 : 4;

struct Nothing {
    __device__ void operator()(int, int, int) const {}
};

// A (m, k) with k dense, or with m dense (A_COLUMNS); B (k, n) with k dense, or with n dense (B_ROWS). What A has along its dense axis from `split` on, a
// multiple of 128, lies in `a_high`. A tile's k is shared out to `shares` blocks. Shared memory as Layout<T, 128, COLUMNS, STAGES, SLABS>.
// finish(sums, row, column, slabs, slab): sums from (row, column) on; `slab` counts what has been stored through slabs. HALVES: B (n, k) has two halves of
// n / 2 rows, and a tile COLUMNS / 2 of each, side by side. between(step, row, column) is called while each stage of a tile is multiplied.
template <class T, bool A_COLUMNS, bool B_ROWS, int COLUMNS, int LAG, int STAGES = tile_stages<COLUMNS>, int SLABS = TILE_SLABS, bool HALVES = false,
          class Finish, class Between = Nothing>
__device__ __forceinline__ void walk_tiles(const TensorMap& a, const TensorMap& a_high, const TensorMap& b, int m, int n, int k, int split, int shares,
                                           int band, char* shared, Finish finish, Between between = {}) {
    constexpr bool TURNS = COLUMNS < 256;
    static_assert(LAG <= STAGES, "the first warpgroup would wait for stages that the second one has not begun with");
    constexpr int PARTS = TURNS ? 2 : 1;  // of 64 rows, that a warpgroup has
    using Memory = Layout<T, TILE_ROWS, COLUMNS, STAGES, SLABS>;
    constexpr int DEPTH = Memory::DEPTH, PANEL = ROW_BYTES / sizeof(T);
    const Memory memory(shared);
    Mbarrier *full = memory.full(), *empty = memory.empty();
    const int steps = (k + DEPTH - 1) / DEPTH, row_tiles = (m + TILE_ROWS - 1) / TILE_ROWS, column_tiles = (n + COLUMNS - 1) / COLUMNS;
    const int tiles = row_tiles * column_tiles, items = tiles * shares, warpgroup = threadIdx.x / GROUP, lane = threadIdx.x % 32;
    const auto first_step = [&](int share) { return static_cast<int>(static_cast<long long>(steps) * share / shares); };
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], (TURNS ? 1 : CONSUMERS) * 4);
        }
        fence_mbarrier_init();
    }
    __syncthreads();

    if (warpgroup == CONSUMERS) {
        register_deallocate<24>();
        if (threadIdx.x != CONSUMERS * GROUP) return;
        Ring<STAGES> ring;
        for (int index = blockIdx.x; index < items; index += gridDim.x) {
            const Tile tile(index % tiles, row_tiles, column_tiles, band);
            const int row = tile.row * TILE_ROWS, column = tile.column * COLUMNS, share = index / tiles;
            for (int step = first_step(share); step < first_step(share + 1); ++step, ring.advance()) {
                const int depth = step * DEPTH, dense = A_COLUMNS ? row : depth;
                const TensorMap& of_a = dense < split ? a : a_high;
                const int at = dense < split ? dense : dense - split;
                Mbarrier* arrived = &full[ring.stage];
                mbarrier_wait(&empty[ring.stage], ring.parity ^ 1);
                mbarrier_arrive_expect_tx(arrived, Memory::STAGE_BYTES);
                if (A_COLUMNS) {
                    for (int i = 0; i < TILE_ROWS / PANEL; ++i) tma_load(memory.a(ring.stage) + i * DEPTH * ROW_BYTES, of_a, arrived, at + i * PANEL, depth);
                } else {
                    tma_load(memory.a(ring.stage), of_a, arrived, at, row);
                }
                if (B_ROWS) {
                    for (int i = 0; i < COLUMNS / PANEL; ++i)
                        tma_load(memory.b(ring.stage) + i * DEPTH * ROW_BYTES, b, arrived, column + i * PANEL, depth);
                } else if (HALVES) {
                    tma_load(memory.b(ring.stage), b, arrived, depth, column / 2);
                    tma_load(memory.b(ring.stage) + Memory::B_BYTES / 2, b, arrived, depth, (n + column) / 2);
                } else {
                    tma_load(memory.b(ring.stage), b, arrived, depth, column);
                }
            }
        }
        return;
    }

    register_allocate<240>();
    float d[PARTS][COLUMNS / 2];
    int slab = 0, turn = 0, done = 0;  // `done`: stages
    auto release = [&](int stage) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&empty[stage]);
    };
    for (int index = blockIdx.x; index < items; index += gridDim.x, turn ^= 1) {
        const Tile tile(index % tiles, row_tiles, column_tiles, band);
        const int first = first_step(index / tiles), last = first_step(index / tiles + 1);
        if (TURNS && turn != warpgroup) {
            done += last - first;
            continue;
        }
        // An mbarrier tells odd phases from even ones, and no more: nobody may wait for a stage that the other warpgroup has still to wait for.
        if (TURNS && index > blockIdx.x) named_barrier_sync(TURN_BARRIER + warpgroup, CONSUMERS * GROUP);
        if (LAG > 0 && index == blockIdx.x && warpgroup == 1) named_barrier_sync(LAG_BARRIER, CONSUMERS * GROUP);
        Ring<STAGES> ring;
        ring.stage = done % STAGES, ring.parity = done / STAGES % 2;
        int before = 0;
        for (int step = first; step < last; ++step, ring.advance()) {
            mbarrier_wait(&full[ring.stage], ring.parity);
            wgmma_fence();
            const char* const tile_a = memory.a(ring.stage) + (TURNS ? 0 : warpgroup * 64 * ROW_BYTES);
            const MatrixDescriptor slab_b = matrix_descriptor(memory.b(ring.stage), DEPTH * ROW_BYTES, 8 * ROW_BYTES, 128);
            constexpr int NEXT_A = A_COLUMNS ? 16 * ROW_BYTES : 32, NEXT_B = B_ROWS ? 16 * ROW_BYTES : 32;  // 16 of k further
#pragma unroll
            for (int i = 0; i < ROW_BYTES / 32; ++i)
#pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    const MatrixDescriptor slab_a = matrix_descriptor(tile_a + part * 64 * ROW_BYTES, DEPTH * ROW_BYTES, 8 * ROW_BYTES, 128);
                    wgmma<T, A_COLUMNS, B_ROWS>(d[part], slab_a + (i * NEXT_A >> 4), slab_b + (i * NEXT_B >> 4), step > first || i > 0);
                }
            wgmma_commit();
            between(step - first, tile.row * TILE_ROWS + 64 * warpgroup, tile.column * COLUMNS);
            if (LAG > 0 && index == blockIdx.x && warpgroup == 0 && step == min(first + LAG, last) - 1) named_barrier_arrive(LAG_BARRIER, CONSUMERS * GROUP);
            if (TURNS && step == last - 1 && index + gridDim.x < items) named_barrier_arrive(TURN_BARRIER + 1 - warpgroup, CONSUMERS * GROUP);
            wgmma_wait<1>();
            if (step > first) release(before);
            before = ring.stage;
        }
#pragma unroll
        for (int part = 0; part < PARTS; ++part) wgmma_wait<0>(d[part]);
        release(before);
        done += last - first;
#pragma unroll
        for (int part = 0; part < PARTS; ++part)
            finish(d[part], tile.row * TILE_ROWS + 64 * (TURNS ? part : warpgroup), tile.column * COLUMNS, memory.slab(warpgroup * (SLABS / CONSUMERS)),
                   slab);
    }
    if (threadIdx.x % GROUP == 0) tma_wait_read<0>();
}

// A warpgroup's 64 x COLUMNS sums leave for C at (row, column) through its slabs, as T or as floats, and the copy engine stores them, or adds them to C (ADD).
// The map of C has boxes of 64 rows and 128 bytes.
template <class T, bool ADD, int HALF>
__device__ __forceinline__ void put_tile(const TensorMap& c, char* slabs, int& slab, const float (&d)[HALF], int row, int column) {
    constexpr int WIDTH = ROW_BYTES / sizeof(T);
    const int thread = threadIdx.x % GROUP, lane = threadIdx.x % 32, warp_row = thread / 32 * 16, warpgroup = threadIdx.x / GROUP;
#pragma unroll
    for (int piece = 0; piece < 2 * HALF / WIDTH; ++piece, ++slab) {
        char* staged = slabs + slab % OWN_SLABS * (64 * ROW_BYTES);
        if (thread == 0) tma_wait_read<OWN_SLABS - 1>();
        named_barrier_sync(1 + warpgroup, GROUP);
        if constexpr (sizeof(T) == 2) {
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {  // of blocks of 8 columns
                unsigned packed[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int at = (piece * WIDTH + 16 * pair) / 2 + 2 * i;
                    packed[i] = pack_pair<T>(d[at], d[at + 1]);
                }
                const int staged_row = warp_row + lane % 16;
                stmatrix(staged + staged_row * ROW_BYTES + ((2 * pair + lane / 16 ^ staged_row % 8) << 4), packed);
            }
        } else {
#pragma unroll
            for (int i = 0; i < WIDTH / 2; i += 2) {
                const int staged_row = warp_row + lane / 4 + i / 2 % 2 * 8, of_row = i / 4 * 2 + lane % 4 / 2;
                *reinterpret_cast<float2*>(staged + staged_row * ROW_BYTES + ((of_row ^ staged_row % 8) << 4) + lane % 2 * 8) =
                    make_float2(d[piece * (WIDTH / 2) + i], d[piece * (WIDTH / 2) + i + 1]);
            }
        }
        fence_proxy_async_shared();
        named_barrier_sync(1 + warpgroup, GROUP);
        if (thread == 0) {
            if (ADD) tma_reduce_add(c, staged, column + WIDTH * piece, row);
            else tma_store(c, staged, column + WIDTH * piece, row);
            tma_commit();
        }
    }
}
