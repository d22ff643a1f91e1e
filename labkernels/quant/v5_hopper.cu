// Quantised matmul, v5: Hopper. y = x W^T for two to thousands of rows of x, W in 4 or 8 bits (sm_90a).
//   Idea      W is wgmma's A operand, which may come from registers: a lane reads its numbers from shared memory, as they are stored, makes
//             pairs of 16 bits of them, and the tensor cores take them from there. They are never written again. Rows of x are columns
//             of the result, 16 to 256 at a time, and go to shared memory by TMA, as W's tiles do. There are two sets of A registers: one is
//             filled while the tensor cores read the other.
//             Tiles are dealt out whole as long as there is one for every block. What is left, at a few rows of x everything, is cut along k
//             into equal parts, one for every block, wherever a tile ends ("stream-K"). Parts of a tile meet in memory; who comes last adds
//             them, in the order of k: the same bits each time.
//   Predicts  11008 x 4096 in 4 bits are 22.5 MB, 5.3 us; x comes once for every 256 rows of W, 43 times in all: at 64 rows another 22 MB
//             from L2. Unpacking takes 16 instructions for 8 numbers, a sixth of the time of their multiplication by 256 rows of x.
//   Measured  data/measured/h200/quant_matmul.csv
//   Wastes    Each 128 (256) rows of W are unpacked again for every 256 rows of x; parts of tiles pass through L2.
#include <cuda_fp8.h>

#include "../matmul/hopper.cuh"
#include "dequantise.cuh"
#include "setmaxnreg.cuh"
#include "stream_k.cuh"
#include "wgmma.cuh"

constexpr int DEPTH = 128;  // of k in a stage; wgmma takes 16 of them at a time, a swizzled row of x has 64

// A block's shared memory. A stage has 2 x TOKENS x 64 of x, ROWS x 128 numbers of W, and the scales of their groups.
template <Scheme SCHEME, int GROUP_SIZE, int ROWS, int TOKENS, int STAGES, int SLABS, int COPIES>
struct Memory {
    static constexpr int WIDTH = SCHEME == Scheme::kInt8 || SCHEME == Scheme::kFp8 ? DEPTH : DEPTH / 2;  // bytes of a row of W
    static constexpr int X_BYTES = TOKENS * ROW_BYTES, W_BYTES = ROWS * WIDTH;
    static constexpr int SCALE_BYTES = GROUP_SIZE == 0 ? 0 : DEPTH / GROUP_SIZE * ROWS * (SCHEME == Scheme::kInt4 ? 4 : 2);
    static constexpr int STAGE_BYTES = (2 * X_BYTES + W_BYTES + SCALE_BYTES + 1023) / 1024 * 1024;
    static constexpr int SLAB_TOKENS = TOKENS < 32 ? TOKENS : 32, SLAB_BYTES = SLAB_TOKENS * ROW_BYTES;
    char* base;

    __device__ explicit Memory(char* shared) : base(shared) {}
    __device__ char* x(int stage) const { return base + stage * STAGE_BYTES; }
    __device__ char* w(int stage) const { return x(stage) + 2 * X_BYTES; }
    __device__ char* scales(int stage) const { return w(stage) + W_BYTES; }
    __device__ char* slab(int i) const { return base + STAGES * STAGE_BYTES + i * SLAB_BYTES; }
    __device__ unsigned* table() const { return reinterpret_cast<unsigned*>(slab(SLABS)); }
    __device__ Mbarrier* full() const { return reinterpret_cast<Mbarrier*>(table() + 256 * COPIES); }
    __device__ Mbarrier* empty() const { return full() + STAGES; }
};

// Where the sums of two blocks of 8 columns of a tile are, 8 of a thread: in its registers, or in memory, as parts to be added.
template <int PARTS, int COUNT>
struct WholeTile {
    static constexpr int UNROLL = 8;
    const float (&d)[PARTS][COUNT];
    __device__ __forceinline__ void read(float (&sums)[8], int part, int block) const {
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[i] = d[part][4 * block + i];
    }
};
template <int PER_PART, int THREADS, int TILE>
struct PartsOfTile {
    static constexpr int UNROLL = 1;
    const float4* own;
    const Schedule& schedule;
    int tile, first, last;  // the tile, and the blocks that have parts of it
    __device__ __forceinline__ void read(float (&sums)[8], int part, int block) const {
        for (int from = first; from <= last; ++from) {
            const float4* const theirs = own + schedule.slot(from, tile) * (long long)TILE + (part * PER_PART + block) * THREADS;
            const float4 low = __ldcg(theirs), high = __ldcg(theirs + THREADS);
            const float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int i = 0; i < 8; ++i) sums[i] = from > first ? sums[i] + values[i] : values[i];
        }
    }
};

// Columns of the sums are rows of y: stmatrix writes them transposed, up to 32 rows of y at a time, and the copy engine takes them away.
// `slabs` are the warpgroup's own, COUNT of SLAB_TOKENS rows; `slab` counts those written so far. A part is 64 rows of W from `row` on, and
// `factors` what multiplies its sums, where SCALED.
template <class T, bool SCALED, int TOKENS, int SLAB_TOKENS, int COUNT, class Sums>
__device__ __forceinline__ void store_part(const TensorMap& y, char* slabs, int& slab, const Sums& sums, int part, int row, int token,
                                           const float (&factors)[2]) {
    const int thread = threadIdx.x % GROUP, lane = threadIdx.x % 32, warpgroup = threadIdx.x / GROUP;
    constexpr int UNROLL = Sums::UNROLL;
#pragma unroll UNROLL
    for (int first = 0; first < TOKENS; first += SLAB_TOKENS, ++slab) {
        char* const staged = slabs + slab % COUNT * (SLAB_TOKENS * ROW_BYTES);
        if (thread == 0) tma_wait_read<COUNT - 1>();
        named_barrier_sync(1 + warpgroup, GROUP);
#pragma unroll UNROLL
        for (int block = 0; block < SLAB_TOKENS / 8; block += 2) {
            float own[8];
            unsigned packed[4];
            sums.read(own, part, first / 8 + block);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float factor = SCALED ? factors[i % 2] : 1.0f;
                packed[i] = pack_pair<T>(own[2 * i] * factor, own[2 * i + 1] * factor);
            }
            const int at = 8 * (block + lane / 16) + lane % 8, piece = thread / 32 * 2 + lane / 8 % 2;
            stmatrix_trans(staged + at * ROW_BYTES + ((piece ^ at % 8) << 4), packed);
        }
        fence_proxy_async_shared();
        named_barrier_sync(1 + warpgroup, GROUP);
        if (thread == 0) {
            tma_store(y, staged, row, token + first);
            tma_commit();
        }
    }
}

// x, y, w and scales: tensor maps of (m, k), (m, n), W as stored, (n, bytes of a row), and (groups, n). row_scales: of 8-bit numbers, one a
// row of W. workspace: 2 * gridDim.x * ROWS * TOKENS floats, and counters: zeros, one for each tile that is not whole; they are zeros again
// afterwards. Tiles are taken in bands of `band` rows of tiles.
template <class T, Scheme SCHEME, int GROUP_SIZE, int CONSUMERS, int PARTS, int TOKENS, int STAGES, int SLABS, int COPIES>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    quant_matmul_hopper(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap scales,
                        const __grid_constant__ TensorMap y, const float* row_scales, const float* codebook, int m, int n, int k, int whole,
                        int band, float4* workspace, int* counters) {
    constexpr int ROWS = 64 * CONSUMERS * PARTS, COUNT = TOKENS / 2, THREADS = CONSUMERS * GROUP;
    constexpr bool FOUR_BIT = GROUP_SIZE > 0;
    using Shared = Memory<SCHEME, GROUP_SIZE, ROWS, TOKENS, STAGES, SLABS, COPIES>;
    extern __shared__ __align__(1024) char dynamic[];
    __shared__ int arrived_before;
    const Shared memory(dynamic);
    Mbarrier *full = memory.full(), *empty = memory.empty();
    const int row_tiles = (n + ROWS - 1) / ROWS, token_tiles = (m + TOKENS - 1) / TOKENS, steps = (k + DEPTH - 1) / DEPTH;
    const int warpgroup = threadIdx.x / GROUP, thread = threadIdx.x % GROUP, lane = threadIdx.x % 32;

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], CONSUMERS * 4);
        }
        fence_mbarrier_init();
    }
    if (SCHEME == Scheme::kCodebook) make_table<T, COPIES>(memory.table(), codebook, threadIdx.x, blockDim.x);
    __syncthreads();

    Schedule schedule(row_tiles * token_tiles, whole, steps);
    Ring<STAGES> ring;
    Item item;
    if (warpgroup == CONSUMERS) {
        register_deallocate<40>();
        while (thread == 0 && schedule.item(item)) {
            const Tile tile(item.tile, row_tiles, token_tiles, band);
            for (int step = item.first; step < item.last; ++step, ring.advance()) {
                Mbarrier* arrived = &full[ring.stage];
                mbarrier_wait(&empty[ring.stage], ring.parity ^ 1);
                mbarrier_arrive_expect_tx(arrived, 2 * Shared::X_BYTES + Shared::W_BYTES + Shared::SCALE_BYTES);
                tma_load(memory.w(ring.stage), w, arrived, step * (FOUR_BIT ? DEPTH / 8 : DEPTH), tile.row * ROWS);
                if (FOUR_BIT) tma_load(memory.scales(ring.stage), scales, arrived, tile.row * ROWS, step * (DEPTH / (FOUR_BIT ? GROUP_SIZE : 1)));
                for (int half = 0; half < 2; ++half)
                    tma_load(memory.x(ring.stage) + half * Shared::X_BYTES, x, arrived, step * DEPTH + half * 64, tile.column * TOKENS);
            }
        }
        return;
    }

    register_allocate<CONSUMERS == 4 ? 104 : CONSUMERS == 3 ? 152 : 232>();
    const int own_row = thread / 32 * 16 + lane / 4, shift = lane % 4 * 4;  // among a part's 64 rows; of the lane's pair in a word
    const unsigned copy = lane % (COPIES > 0 ? COPIES : 1) * 4;                              // of the table, in bytes
    constexpr int LOW = COPIES == 32 ? 7 : COPIES == 8 ? 5 : 2;               // bits of an entry's address below its first code
    float d[PARTS][COUNT];
    unsigned a[2][PARTS][4][4];  // two sets, of 64 of k each
    int slab = 0;
    const auto release = [&](int stage) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&empty[stage]);
    };
    // Half a stage of W, the rows of one part, becomes A fragments.
    const auto unpack = [&](unsigned(&to)[4][4], int stage, int half, int part) {
        const int row = (warpgroup * PARTS + part) * 64 + own_row;
        if constexpr (FOUR_BIT) {
#pragma unroll
            for (int piece = 0; piece < 2; ++piece) {  // 16 bytes, 32 of k
                const int group = (half * 64 + piece * 32) / GROUP_SIZE;
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const int at = row + 8 * r;
                    const uint4 words = *reinterpret_cast<const uint4*>(memory.w(stage) + at * 64 + (((2 * half + piece) ^ (at / 2 & 3)) << 4));
                    const unsigned own[4] = {words.x, words.y, words.z, words.w};
                    Factor factor;
                    if constexpr (SCHEME == Scheme::kInt4) {
                        factor = factor_of<T>(reinterpret_cast<const unsigned*>(memory.scales(stage))[group * ROWS + at]);
                    } else {
                        const unsigned scale = reinterpret_cast<const unsigned short*>(memory.scales(stage))[group * ROWS + at];
                        factor = factor_of<T>(scale);
                    }
#pragma unroll
                    for (int word = 0; word < 4; ++word) {
                        unsigned& fragment = to[2 * piece + word / 2][word % 2 * 2 + r];
                        if constexpr (SCHEME == Scheme::kInt4) {
                            fragment = int4_pair<T>(own[word] >> shift, factor);
                        } else {
                            // Codes at bits `shift` and 16 + `shift` come to where they select an entry.
                            const unsigned first = __funnelshift_l(own[word], own[word], LOW - shift);
                            const unsigned second = __funnelshift_l(own[word], own[word], LOW + 4 - 16 - shift);
                            const unsigned place = lop3<(LOP3_A & LOP3_B) | LOP3_C>(second, 0xfu << (LOW + 4),
                                                                                    lop3<(LOP3_A & LOP3_B) | LOP3_C>(first, 0xfu << LOW, copy));
                            fragment = times<T>(*reinterpret_cast<const unsigned*>(reinterpret_cast<const char*>(memory.table()) + place), factor.scale);
                        }
                    }
                }
            }
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const int at = row + 8 * r;
                    const char* const piece = memory.w(stage) + at * 128 + (((4 * half + i) ^ (at & 7)) << 4);
#pragma unroll
                    for (int high = 0; high < 2; ++high) {  // bytes 2t, 2t + 1, and those 8 further
                        const unsigned bytes = *reinterpret_cast<const unsigned short*>(piece + 8 * high + lane % 4 * 2);
                        if constexpr (SCHEME == Scheme::kInt8) to[i][2 * high + r] = int8_pair<T, 0, 1>(bytes ^ 0x8080u);
                        else to[i][2 * high + r] = fp8_pair<T>(bytes);
                    }
                }
        }
    };

    constexpr int OWN = SLABS / CONSUMERS;  // slabs of this warpgroup
    // What multiplies the sums of a part, rows `own_row` and the 8th after it; the part's first row.
    const auto factors_of = [&](float(&factors)[2], const Tile& tile, int part) {
        const int row = tile.row * ROWS + (warpgroup * PARTS + part) * 64;
        for (int r = 0; r < 2; ++r) factors[r] = !FOUR_BIT && row + own_row + 8 * r < n ? row_scales[row + own_row + 8 * r] : 1.0f;
        return row;
    };

    while (schedule.item(item)) {
        const Tile tile(item.tile, row_tiles, token_tiles, band);
        int before = 0;
        for (int step = item.first; step < item.last; ++step, ring.advance()) {
            mbarrier_wait(&full[ring.stage], ring.parity);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int part = 0; part < PARTS; ++part) unpack(a[half][part], ring.stage, half, part);
                const MatrixDescriptor tokens = matrix_descriptor(memory.x(ring.stage) + half * Shared::X_BYTES, 0, 8 * ROW_BYTES, 128);
                wgmma_fence();
#pragma unroll
                for (int part = 0; part < PARTS; ++part)
#pragma unroll
                    for (int i = 0; i < 4; ++i) wgmma<T>(d[part], a[half][part][i], tokens + 2 * i, step > item.first || half + i > 0);
                wgmma_commit();
                wgmma_wait<1>();
                if (half == 0 && step > item.first) release(before);
            }
            before = ring.stage;
        }
#pragma unroll
        for (int part = 0; part < PARTS; ++part) wgmma_wait<0>(d[part]);
        release(before);

        if (item.last - item.first < steps) {
            constexpr int TILE = ROWS * TOKENS / 4;  // vectors of 4 sums
            float4* const own = workspace + (long long)schedule.slot(blockIdx.x, item.tile) * TILE + threadIdx.x;
#pragma unroll
            for (int i = 0; i < PARTS * COUNT / 4; ++i) {
                const float* from = &d[i / (COUNT / 4)][i % (COUNT / 4) * 4];
                own[i * THREADS] = make_float4(from[0], from[1], from[2], from[3]);
            }
            const Meeting meeting = meet(schedule, item.tile, counters, arrived_before, 1 + CONSUMERS, THREADS);
            if (!meeting.is_last) continue;
            const PartsOfTile<COUNT / 4, THREADS, TILE> parts{workspace + threadIdx.x, schedule, item.tile, meeting.first, meeting.last};
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                float factors[2];
                const int row = factors_of(factors, tile, part);
                store_part<T, !FOUR_BIT, TOKENS, Shared::SLAB_TOKENS, OWN>(y, memory.slab(warpgroup * OWN), slab, parts, part, row, tile.column * TOKENS,
                                                                           factors);
            }
        } else {
            const WholeTile<PARTS, COUNT> sums{d};
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                float factors[2];
                const int row = factors_of(factors, tile, part);
                store_part<T, !FOUR_BIT, TOKENS, Shared::SLAB_TOKENS, OWN>(y, memory.slab(warpgroup * OWN), slab, sums, part, row, tile.column * TOKENS,
                                                                           factors);
            }
        }
    }
    if (thread == 0) tma_wait_read<0>();
}
