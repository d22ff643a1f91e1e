// Quantised matmul, v4: tensor cores. y = x W^T for up to some hundred rows of x, by mma.sync, on every GPU since Ampere (sm_80).
//   Idea      W is the A operand of m16n8k16, and rows of x are its columns, so a few rows of x waste little. Which k a column of A stands
//             for is nobody's business as long as B has the same: a lane reads 16 bytes of a row of W, 32 neighbours along k, and uses them
//             as they lie, without moving one to another lane. They come by cp.async, some stages ahead, to where the lane itself will
//             read them. x comes the same way, for all warps of the block, in the order in which lanes need its pieces.
//             Blocks share the tiles out as stream_k.cuh says.
//   Predicts  A lane unpacks 8 numbers in 15 instructions, for one mma with every 8 rows of x: at 16 rows the tensor cores wait for the
//             unpacking, at 64 it is the other way around. x is read once for every 128 or 256 rows of W.
//   Measured  data/measured/h200/quant_matmul.csv: 11008 x 4096 in int4: 16 rows 24.6 us (cuBLAS with a bf16 weight 28.5), 64 rows 37.0 (27.1),
//             256 rows 109 (34.4).
//   Wastes    On Hopper mma.sync reaches about half of what wgmma does, and threads spend instructions on copies.
#include "convert.cuh"
#include "cp_async.cuh"
#include "dequantise.cuh"
#include "mma.cuh"
#include "stream_k.cuh"

constexpr int DEPTH = 128;  // of k in a stage

// A block's shared memory: STAGES times x, TOKENS x 128; W, for every warp, tile of 16 rows and lane the lane's own pieces; their scales.
template <Scheme SCHEME, int WARPS, int TILES, int TOKENS>
struct Stage {
    static constexpr bool FOUR_BIT = SCHEME == Scheme::kInt4 || SCHEME == Scheme::kCodebook;
    static constexpr int PIECES = FOUR_BIT ? 1 : 2;  // of 16 bytes, that a lane reads of a row
    static constexpr int X_BYTES = TOKENS * DEPTH * 2, W_BYTES = WARPS * TILES * 2 * PIECES * 512, SCALE_BYTES = FOUR_BIT ? WARPS * TILES * 2 * 128 : 0;
    static constexpr int BYTES = X_BYTES + W_BYTES + SCALE_BYTES;

    // Where piece `chunk` (8 of k) of a row of x lies: a lane t reads pieces t, t + 4, t + 8 and t + 12 of the row, and 8 lanes all banks.
    static __device__ __forceinline__ int x_place(int token, int chunk) {
        const int place = FOUR_BIT ? chunk >> 2 | (chunk & 3) << 2 : (chunk >> 1 & 3) | (chunk >> 3) << 3 | (chunk & 1) << 2;
        return token * (2 * DEPTH) + ((place ^ (token & 1) << 2) << 4);
    }
    static __device__ __forceinline__ int w_place(int warp, int tile, int half, int piece, int lane) {
        return X_BYTES + ((((warp * TILES + tile) * 2 + half) * PIECES + piece) * 32 + lane) * 16;
    }
    static __device__ __forceinline__ int scale_place(int warp, int tile, int half, int lane) {
        return X_BYTES + W_BYTES + (((warp * TILES + tile) * 2 + half) * 32 + lane) * 4;
    }
};

// Goes through the steps of a block's items, one after the other.
struct Cursor {
    Schedule schedule;
    Item item;
    int step;
    bool live;
    __device__ explicit Cursor(const Schedule& all) : schedule(all) { next_item(); }
    __device__ void next_item() {
        live = schedule.item(item);
        step = item.first;
    }
    __device__ void advance() {
        if (++step == item.last) next_item();
    }
};

// x (m, k): rows on multiples of 16 bytes. packed: W, rows of row_bytes, a multiple of 16. y (m, n), contiguous. Others as for v5, but that
// workspace has 2 * gridDim.x * 16 * WARPS * TILES * TOKENS floats. STAGES * Stage::BYTES of shared memory, and 32 KB for a codebook's table.
template <class T, Scheme SCHEME, int GROUP_SIZE, int WARPS, int TILES, int TOKENS, int STAGES>
__global__ void __launch_bounds__(32 * WARPS, TILES == 1 ? 2 : 1)
    quant_matmul_tensor_cores(const T* x, const void* packed, const void* scales, const float* codebook, T* y, int m, int n, int k,
                              long long x_stride, int row_bytes, int groups, int whole, float* workspace, int* counters) {
    using Shared = Stage<SCHEME, WARPS, TILES, TOKENS>;
    const unsigned char* const w = static_cast<const unsigned char*>(packed);
    constexpr bool FOUR_BIT = Shared::FOUR_BIT;
    constexpr int ROWS = 16 * WARPS * TILES, THREADS = 32 * WARPS, PIECES = Shared::PIECES;
    extern __shared__ __align__(128) unsigned char dynamic[];
    __shared__ int arrived_before;
    unsigned* const table = reinterpret_cast<unsigned*>(dynamic + STAGES * Shared::BYTES);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int row_tiles = (n + ROWS - 1) / ROWS, token_tiles = (m + TOKENS - 1) / TOKENS, steps = (k + DEPTH - 1) / DEPTH;
    const Schedule schedule(row_tiles * token_tiles, whole, steps);
    if (SCHEME == Scheme::kCodebook) make_table<T, 32>(table, codebook, threadIdx.x, THREADS);

    // The rows of W that this lane reads, in the tile of rows `tile`: its own of a tile of 16, and the 8th after it.
    const auto row_of = [&](int row_tile, int tile, int half) { return min(row_tile * ROWS + (warp * TILES + tile) * 16 + g + 8 * half, n - 1); };
    const auto copy = [&](unsigned char* stage, int tile, int step) {
        const int row_tile = tile % row_tiles, first_token = tile / row_tiles * TOKENS;
#pragma unroll
        for (int i = threadIdx.x; i < TOKENS * 16; i += THREADS) {
            const int token = i / 16, chunk = i % 16, col = step * DEPTH + chunk * 8;
            const int valid = first_token + token < m ? max(0, min(8, k - col)) : 0;
            cp_async<16>(stage + Shared::x_place(token, chunk), valid > 0 ? x + (first_token + token) * x_stride + col : x, 2 * valid);
        }
#pragma unroll
        for (int part = 0; part < 2 * TILES; ++part) {
            const int row = row_of(row_tile, part / 2, part % 2);
#pragma unroll
            for (int piece = 0; piece < PIECES; ++piece) {
                const int byte = step * (64 * PIECES) + piece * 64 + t * 16;
                const bool inside = byte < row_bytes;
                cp_async_l2_if(inside, stage + Shared::w_place(warp, part / 2, part % 2, piece, lane), inside ? w + row * (long long)row_bytes + byte : w);
            }
            if constexpr (FOUR_BIT) {
                const long long at = min((step * DEPTH + t * 32) / GROUP_SIZE, groups - 1) * (long long)n + row;
                unsigned char* const to = stage + Shared::scale_place(warp, part / 2, part % 2, lane);
                if constexpr (SCHEME == Scheme::kInt4) cp_async<4>(to, static_cast<const unsigned*>(scales) + at);
                else cp_async<4>(to, static_cast<const unsigned short*>(scales) + (at & ~1LL), at == (long long)groups * n - 1 ? 4 - 2 * (~at & 1) : 4);
            }
        }
    };

    Cursor coming(schedule), work(schedule);
    const auto fetch = [&](int stage) {
        if (coming.live) {
            copy(dynamic + stage * Shared::BYTES, coming.item.tile, coming.step);
            coming.advance();
        }
        cp_async_commit();
    };
    for (int s = 0; s < STAGES - 1; ++s) fetch(s);

    float sums[TILES][TOKENS / 8][4];
    int stage = 0;
    while (work.live) {
        const Item item = work.item;
        const int row_tile = item.tile % row_tiles, first_token = item.tile / row_tiles * TOKENS;
#pragma unroll
        for (int i = 0; i < TILES * TOKENS / 2; ++i) sums[i / (TOKENS / 2)][i / 4 % (TOKENS / 8)][i % 4] = 0.0f;
        for (int step = item.first; step < item.last; ++step) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();  // this stage has come, for all; and all have read the one before, which is filled again
            fetch(stage == 0 ? STAGES - 1 : stage - 1);
            const unsigned char* const from = dynamic + stage * Shared::BYTES;
            uint4 words[TILES][2][PIECES];
            Factor factors[TILES][2];
#pragma unroll
            for (int part = 0; part < 2 * TILES; ++part) {
#pragma unroll
                for (int piece = 0; piece < PIECES; ++piece)
                    words[part / 2][part % 2][piece] = *reinterpret_cast<const uint4*>(from + Shared::w_place(warp, part / 2, part % 2, piece, lane));
                if constexpr (FOUR_BIT) {
                    unsigned word = *reinterpret_cast<const unsigned*>(from + Shared::scale_place(warp, part / 2, part % 2, lane));
                    if constexpr (SCHEME == Scheme::kCodebook) {
                        const long long at = min((step * DEPTH + t * 32) / GROUP_SIZE, groups - 1) * (long long)n + row_of(row_tile, part / 2, part % 2);
                        word = at & 1 ? word >> 16 : word & 0xffffu;
                    }
                    factors[part / 2][part % 2] = factor_of<T>(word);
                }
            }
#pragma unroll
            for (int eight = 0; eight < 4; ++eight) {  // of the lane's k: two mma
                unsigned a[TILES][2][4];
#pragma unroll
                for (int part = 0; part < 2 * TILES; ++part) {
                    const int tile = part / 2, half = part % 2;
                    const Factor& factor = factors[tile][half];
                    const uint4& own = words[tile][half][FOUR_BIT ? 0 : eight / 2];
                    const unsigned each[4] = {own.x, own.y, own.z, own.w};
#pragma unroll
                    for (int pair = 0; pair < 4; ++pair) {
                        unsigned& to = a[tile][pair / 2][pair % 2 * 2 + half];
                        if constexpr (SCHEME == Scheme::kInt4) {
                            to = int4_pair<T>(each[eight] >> 4 * pair, factor);
                        } else if constexpr (SCHEME == Scheme::kCodebook) {
                            // A byte holds k 0, 2 or 4, 6 or 1, 3 or 5, 7; x is brought into the same order below.
                            const int byte = pair / 2 + pair % 2 * 2;
                            const unsigned moved = byte == 0 ? each[eight] << 7 : each[eight] >> (8 * byte - 7);
                            const unsigned place = lop3<(LOP3_A & LOP3_B) | LOP3_C>(moved, 0x7f80u, lane * 4);
                            to = times<T>(*reinterpret_cast<const unsigned*>(reinterpret_cast<const char*>(table) + place), factor.scale);
                        } else {
                            const unsigned word = each[eight % 2 * 2 + pair / 2];
                            if constexpr (SCHEME == Scheme::kInt8) {
                                const unsigned moved = word ^ 0x80808080u;
                                to = pair % 2 == 0 ? int8_pair<T, 0, 1>(moved) : int8_pair<T, 2, 3>(moved);
                            } else {
                                to = fp8_pair<T>(pair % 2 == 0 ? word & 0xffff : word >> 16);
                            }
                        }
                    }
                }
#pragma unroll
                for (int block = 0; block < TOKENS / 8; ++block) {
                    const int token = 8 * block + g, chunk = FOUR_BIT ? 4 * t + eight : eight / 2 * 8 + 2 * t + eight % 2;
                    const uint4 eight_of_x = *reinterpret_cast<const uint4*>(from + Shared::x_place(token, chunk));
                    unsigned b[2][2] = {{eight_of_x.x, eight_of_x.y}, {eight_of_x.z, eight_of_x.w}};
                    if constexpr (SCHEME == Scheme::kCodebook) {
                        const unsigned sorted[2][2] = {{prmt(b[0][0], b[0][1], 0x5410), prmt(b[0][0], b[0][1], 0x7632)},
                                                       {prmt(b[1][0], b[1][1], 0x5410), prmt(b[1][0], b[1][1], 0x7632)}};
                        b[0][0] = sorted[0][0], b[0][1] = sorted[0][1], b[1][0] = sorted[1][0], b[1][1] = sorted[1][1];
                    }
#pragma unroll
                    for (int i = 0; i < 2; ++i)
#pragma unroll
                        for (int tile = 0; tile < TILES; ++tile) mma_m16n8k16<T>(sums[tile][block], a[tile][i], b[i], sums[tile][block]);
                }
            }
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }

        if (item.last - item.first < steps) {
            constexpr int TILE = ROWS * TOKENS;
            float4* const own = reinterpret_cast<float4*>(workspace) + threadIdx.x;
            const auto part_of = [&](int block) { return own + work.schedule.slot(block, item.tile) * (long long)(TILE / 4); };
            float4* const mine = part_of(blockIdx.x);
#pragma unroll
            for (int i = 0; i < TILES * TOKENS / 8; ++i) {
                const float(&from)[4] = sums[i / (TOKENS / 8)][i % (TOKENS / 8)];
                mine[i * THREADS] = make_float4(from[0], from[1], from[2], from[3]);
            }
            const Members members = work.schedule.members(item.tile);
            const bool is_last = all_came(members, counters, true, arrived_before, 1, THREADS);
            if (is_last)
                for (int block = members.first; block <= members.last; ++block) {
                    const float4* const theirs = part_of(block);
#pragma unroll
                    for (int i = 0; i < TILES * TOKENS / 8; ++i) {
                        float(&to)[4] = sums[i / (TOKENS / 8)][i % (TOKENS / 8)];
                        const float4 part = __ldcg(theirs + i * THREADS);
                        const float values[4] = {part.x, part.y, part.z, part.w};
#pragma unroll
                        for (int e = 0; e < 4; ++e) to[e] = block > members.first ? to[e] + values[e] : values[e];
                    }
                }
            work.next_item();
            if (!is_last) continue;
        } else {
            work.next_item();
        }
#pragma unroll
        for (int part = 0; part < 2 * TILES; ++part) {
            const int row = row_tile * ROWS + (warp * TILES + part / 2) * 16 + g + 8 * (part % 2);
            if (row >= n) continue;
            const float factor = FOUR_BIT ? 1.0f : static_cast<const float*>(scales)[row];
#pragma unroll
            for (int i = 0; i < TOKENS / 4; ++i) {
                const int token = first_token + i / 2 * 8 + 2 * t + i % 2;
                if (token < m) y[token * (long long)n + row] = from_float<T>(sums[part / 2][i / 2][part % 2 * 2 + i % 2] * factor);
            }
        }
    }
    cp_async_wait_all();
}
