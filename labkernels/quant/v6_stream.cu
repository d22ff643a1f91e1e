// Quantised matmul, v6: the stream of v2 and v3 by the copy engine. Up to 8 rows of x on Hopper (sm_90a), every scheme.
//   Idea      In v2 a warp computes addresses and asks for each 16 bytes, holds registers for what comes, and stops at a barrier after every tile.
//             Here one lane asks the copy engine (TMA) for a step of the warp, 16 rows of 64 bytes and their scales, some steps ahead, into slots
//             of shared memory that only this warp reads: 60 instructions a step less, and none of the others waits. Sums of some tiles are
//             kept, and added up over the warps together.
//             A block takes less than half of an SM's shared memory and registers: the next kernel's, launched early, runs beside it and has
//             its first slots full when this one ends.
//   Predicts  100 instructions a step of 2048 numbers, 2.2 us for 4096 x 11008, while its 24 MB take 5.5 us: memory is the limit, and there is no
//             pause between kernels. A lookup is one more read of shared memory for two numbers: 5.3 us, just within.
//   Measured  data/measured/h200/quant_matmul.csv: one row of x: 11008 x 4096 in int4 9.7 -> 9.6 us (cuBLAS with a bf16 weight 27.3), NF4 15.7
//             (v3) -> 10.4, int8 14.7 -> 13.5; 28672 x 8192 in int4 37.2 -> 31.6 (123), 85% of the limit.
//   Wastes    Seven of eight columns of the tensor cores when x has one row; the first kernel of a stream waits for its first bytes.
#include "gemv.cuh"
#include "gemv_formats.cuh"
#include "tma.cuh"

template <class Element> using Int4Codes = Codes<Element, true, Bank>;
template <class Element> using Codebook = Codes<Element, false, Bank>;

// A warp's slots: two steps of W, rows of 128 bytes, swizzled; and, elsewhere, their scales.
template <class Format, int SPANS>
struct Slot {
    static constexpr int W_BYTES = 2048, SCALE_BYTES = !Format::GROUPED ? 0 : 32 * SPANS * (Format::ASYMMETRIC ? 4 : 2);
    static constexpr int BYTES = W_BYTES + (SCALE_BYTES + 127) / 128 * 128;
};

// Which row of a tile stands in row r (of 8) of the fragments: so that lanes that read at the same time find all banks.
__device__ __forceinline__ int row_in_tile(int r) { return r >> 1 | (r & 1) << 2; }

// y = x w^T for up to 8 rows of x. SPANS: groups in 128 of k (1, 2, 4); ROWS: of x, m or more (1, 2, 4, 8). w, scales: tensor maps of W as it is
// stored, in boxes of 16 rows x 128 bytes, swizzled, and of (groups, n) in boxes of 2 SPANS x 16. Launch at most as many blocks as there are tiles of 16 rows.
// Dynamic shared memory: WARPS * (AHEAD * Slot::BYTES + x_bytes), and 32 KB for the tables of a codebook.
template <template <class> class Of, class T, int SPANS, int ROWS, int WARPS, int AHEAD>
__global__ void __launch_bounds__(32 * WARPS, 2)
    quant_matmul_stream(const T* x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap scales, const float* row_scales,
                        const float* codebook, T* y, int m, int n, int k, long long x_stride, Parts parts, int aligned, int x_bytes) {
    using Format = Of<T>;
    using Step = Slot<Format, SPANS>;
    constexpr int PIECES = Format::PIECES, UNIT = PIECES == 4 ? 32 : 128;  // elements of W in 128 bytes
    constexpr int TILES = Columns<PIECES, SPANS, ROWS>::TILES, COLUMNS = Columns<PIECES, SPANS, ROWS>::COUNT;
    constexpr int FACTORS = SPANS > 1 ? 2 : 1;      // groups that these columns belong to
    constexpr int BATCH = ROWS < 4 ? 4 / ROWS : 1;  // tiles that are added up together
    extern __shared__ __align__(1024) unsigned char shared[];
    __shared__ float of_warp[2][BATCH][WARPS][ROWS][16];
    __shared__ Mbarrier barriers[WARPS][AHEAD];

    if (threadIdx.x == 0) grid_dependency_launch();  // the next kernel's blocks may come as soon as there is room
    const int lane = lane_id(), warp = __shfl_sync(FULL_WARP, warp_id(), 0), r = lane / 4, j = lane % 4, row = row_in_tile(r);
    const int first = warp * parts.each + min(warp, parts.more), units = parts.each + (warp < parts.more), tiles = (n + 15) / 16;
    unsigned char* const slots = shared + warp * (AHEAD * Step::W_BYTES);
    unsigned char* const scale_slots = shared + WARPS * AHEAD * Step::W_BYTES + warp * (AHEAD * (Step::BYTES - Step::W_BYTES));
    Mbarrier* const full = barriers[warp];

    const int stride = gridDim.x;
    int coming = units > 0 ? blockIdx.x : tiles, next = 0;  // what is asked for next: this unit, of two steps, of the warp's part of this tile
    const auto fetch = [&](int slot) {  // one lane
        if (coming >= tiles) return;
        mbarrier_arrive_expect_tx(&full[slot], Step::W_BYTES + Step::SCALE_BYTES);
        tma_load_once(slots + slot * Step::W_BYTES, w, &full[slot], (first + next) * UNIT, coming * 16);
        if (Format::GROUPED)
            tma_load_once(scale_slots + slot * (Step::BYTES - Step::W_BYTES), scales, &full[slot], coming * 16, (first + next) * 2 * SPANS);
        if (++next == units) {
            next = 0;
            coming += stride;
        }
    };
    if (lane == 0) {
        for (int i = 0; i < AHEAD; ++i) mbarrier_init(&full[i], 1);
        fence_mbarrier_init();
        for (int i = 0; i < AHEAD; ++i) fetch(i);
    }
    __syncwarp();

    unsigned char* const behind = shared + WARPS * AHEAD * Step::BYTES;
    uint4* const staged = reinterpret_cast<uint4*>(behind + warp * x_bytes);
    float* const sums = reinterpret_cast<float*>(staged + 2 * units * PIECES * ROWS * 4);
    const typename Format::Table table = Format::prepare(behind + WARPS * x_bytes, codebook);
    grid_dependency_wait();
    stage_x<Format, SPANS, ROWS, true>(staged, sums, x, m, k, x_stride, 2 * first, 2 * units, aligned);
    __syncwarp();

    const Columns<PIECES, SPANS, ROWS> columns(staged, sums, r, j);
    // What the warps have of the last `count` tiles, the last of them `tile`, is added up in order, and leaves.
    const auto settle = [&](int turn, int count, int tile) {
        __syncthreads();
        for (int i = threadIdx.x; i < 16 * m * count; i += 32 * WARPS) {
            const int of_tile = i % 16, of_x = i / 16 % m, which = i / (16 * m), row = (tile - (count - 1 - which) * stride) * 16 + of_tile;
            float value = 0.0f;
#pragma unroll
            for (int each = 0; each < WARPS; ++each) value += of_warp[turn][which][each][of_x][of_tile];
            if (row >= n) continue;
            if (!Format::GROUPED) value *= row_scales[row];
            y[static_cast<long long>(of_x) * n + row] = from_float<T>(value);
        }
    };

    int slot = 0, parity = 0, turn = 0, kept = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += stride) {
        float total[TILES][4] = {};
        for (int unit = 0; unit < units; ++unit) {
            mbarrier_wait(&full[slot], parity);
            const unsigned char* const from = slots + slot * Step::W_BYTES;
            const unsigned char* const of_groups = scale_slots + slot * (Step::BYTES - Step::W_BYTES);
#pragma unroll
            for (int two = 0; two < 2; ++two) {
                uint4 words[2];
                unsigned factors[2][FACTORS];
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    words[h] = *reinterpret_cast<const uint4*>(from + 1024 * h + 128 * row + ((4 * two + j ^ row) << 4));
                    if (!Format::GROUPED) continue;
#pragma unroll
                    for (int c = 0; c < FACTORS; ++c) {
                        const int at = (two * SPANS + (SPANS > 1 ? (2 * j + c) % SPANS : 0)) * 16 + row + 8 * h;
                        if (Format::ASYMMETRIC) factors[h][c] = reinterpret_cast<const unsigned*>(of_groups)[at];
                        else factors[h][c] = reinterpret_cast<const unsigned short*>(of_groups)[at];
                    }
                }
                if (two == 1) {
                    __syncwarp();  // all have read
                    if (lane == 0) fetch(slot);
                    slot = slot + 1 == AHEAD ? 0 : slot + 1;
                    parity ^= slot == 0;
                }

                float sum[2][TILES][4] = {};  // two, so that one mma need not wait for the one before
#pragma unroll
                for (int piece = 0; piece < PIECES; ++piece) {
                    unsigned a[2][4];
                    Format::decode(words[0], piece, table, a[0]);
                    Format::decode(words[1], piece, table, a[1]);
#pragma unroll
                    for (int t = 0; t < TILES; ++t) {
                        const uint4 b = columns.of_b(t, 2 * unit + two, piece);
#pragma unroll
                        for (int half = 0; half < 2; ++half) {
                            const unsigned fragment[4] = {a[0][2 * half], a[1][2 * half], a[0][2 * half + 1], a[1][2 * half + 1]};
                            const unsigned column[2] = {half ? b.z : b.x, half ? b.w : b.y};
                            mma_m16n8k16<T>(sum[half][t], fragment, column, sum[half][t]);
                        }
                    }
                }
#pragma unroll
                for (int h = 0; h < 2; ++h) {
#pragma unroll
                    for (int c = 0; c < COLUMNS; ++c) {
                        const unsigned word = Format::GROUPED ? factors[h][c % FACTORS] : 0;
                        const float scale = __uint_as_float(word << 16), zero = __uint_as_float(word & 0xffff0000u) + Format::OFFSET;
#pragma unroll
                        for (int t = 0; t < TILES; ++t) {
                            float value = sum[0][t][2 * h + c] + sum[1][t][2 * h + c];
                            if (Format::ASYMMETRIC) value -= zero * columns.sum_of_x(t, c, 2 * unit + two);
                            total[t][2 * h + c] = Format::GROUPED ? total[t][2 * h + c] + scale * value : total[t][2 * h + c] + value;
                        }
                    }
                }
            }
        }

        // A row of x has SPANS columns: the sums of its groups meet, two in this lane, four in two neighbours.
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float left = total[t][2 * h];
                if (SPANS > 1) left += total[t][2 * h + 1];
                if (SPANS == 4) left += __shfl_xor_sync(FULL_WARP, left, 1);
                const int of_x = (8 * t + 2 * j) / SPANS;
                if (of_x < ROWS && 2 * j % SPANS == 0) of_warp[turn][kept][warp][of_x][row + 8 * h] = left;
                if (SPANS == 1 && of_x + 1 < ROWS) of_warp[turn][kept][warp][of_x + 1][row + 8 * h] = total[t][2 * h + 1];
            }
        }
        if (++kept == BATCH || tile + stride >= tiles) {
            settle(turn, kept, tile);
            turn ^= 1;
            kept = 0;
        }
    }
}
