// What the kernels of v5 share: a block's shared memory, and how a tile of W in it becomes A fragments of wgmma.
#pragma once
#include <cuda_fp8.h>

#include "../matmul/hopper.cuh"
#include "dequantise.cuh"
#include "ldmatrix.cuh"

constexpr int STEP = 128;  // of k: two halves of 64, the width of a swizzled row of x

// A stage has TOKENS x DEPTH of x, DEPTH being 64 or 128, ROWS x DEPTH numbers of W, and the scales of their groups.
template <Scheme SCHEME, int GROUP_SIZE, int ROWS, int TOKENS, int DEPTH, int STAGES, int COPIES>
struct Memory {
    static constexpr bool FOUR_BIT = GROUP_SIZE > 0;
    static constexpr int WIDTH = FOUR_BIT ? DEPTH / 2 : DEPTH;  // bytes of a row of W, and of its swizzle
    static constexpr int GROUPS = !FOUR_BIT ? 0 : DEPTH < GROUP_SIZE ? 1 : DEPTH / (FOUR_BIT ? GROUP_SIZE : 1);
    static constexpr int PANEL_BYTES = TOKENS * ROW_BYTES, X_BYTES = DEPTH / 64 * PANEL_BYTES, W_BYTES = ROWS * WIDTH;
    static constexpr int SCALE_BYTES = GROUPS * ROWS * (SCHEME == Scheme::kInt4 ? 4 : 2);
    static constexpr int LOADED = X_BYTES + W_BYTES + SCALE_BYTES, STAGE_BYTES = (LOADED + 1023) / 1024 * 1024;
    char* base;

    __device__ explicit Memory(char* shared) : base(shared) {}
    __device__ char* x(int stage) const { return base + stage * STAGE_BYTES; }
    __device__ char* w(int stage) const { return x(stage) + X_BYTES; }
    __device__ char* scales(int stage) const { return w(stage) + W_BYTES; }
    __device__ unsigned* table() const { return reinterpret_cast<unsigned*>(base + STAGES * STAGE_BYTES); }
    __device__ Mbarrier* full() const { return reinterpret_cast<Mbarrier*>(table() + 256 * COPIES); }
    __device__ Mbarrier* empty() const { return full() + STAGES; }
    __device__ Mbarrier* sorted() const { return empty() + STAGES; }

    // The producer's part of a stage: three or four copies.
    __device__ __forceinline__ void load_w(int stage, const TensorMap& map, const TensorMap& scales_map, int depth, int row) const {
        Mbarrier* arrived = full() + stage;
        mbarrier_arrive_expect_tx(arrived, LOADED);
        tma_load(w(stage), map, arrived, FOUR_BIT ? depth / 8 : depth, row);
        if (FOUR_BIT) tma_load(scales(stage), scales_map, arrived, row, depth / (FOUR_BIT ? GROUP_SIZE : 1));
    }
    __device__ __forceinline__ void load_x(int stage, const TensorMap& map, int depth, int token) const {
        for (int panel = 0; panel < DEPTH / 64; ++panel) tma_load(x(stage) + panel * PANEL_BYTES, map, full() + stage, depth + panel * 64, token);
    }
};

// Warpgroups take turns at the tensor cores. wgmma with A in registers holds its warps until those have been read. Left alone, warpgroups fall
// into step: all unpack, then all multiply, and half of the SM rests at any time. One after the other, one multiplies while the others unpack.
// With one CONSUMERS there are no turns.
template <int CONSUMERS>
struct Turns {
    static constexpr int BOTH = 2 * GROUP;
    int first, warpgroup;  // first: of as many named barriers as there are warpgroups

    __device__ Turns(int first, int warpgroup) : first(first), warpgroup(warpgroup) {
        if (CONSUMERS > 1 && warpgroup == CONSUMERS - 1) named_barrier_arrive(first, BOTH);
    }
    __device__ __forceinline__ void wait() const {
        if (CONSUMERS > 1) named_barrier_sync(first + warpgroup, BOTH);
    }
    __device__ __forceinline__ void pass() const {
        if (CONSUMERS > 1) named_barrier_arrive(first + (warpgroup == CONSUMERS - 1 ? 0 : warpgroup + 1), BOTH);
    }
    __device__ __forceinline__ void end() const {  // takes up the last turn that was passed on
        if (CONSUMERS > 1 && warpgroup == 0) named_barrier_sync(first, BOTH);
    }
};

// x in the order in which lanes own W. ldmatrix gives lane t of a row its word t of 16 bytes; so in the fragments of 32 neighbours along k (16, of
// 8 bits) lane t has k = 8t .. 8t+7 (4t .. 4t+3), where wgmma reads B's rows as they lie in shared memory. B's rows can change places as well:
// `thread` of `threads` sorts 64 bytes of a row of x at a time, where TMA has left them.
template <Scheme SCHEME>
__device__ __forceinline__ void sort_x(char* panels, int rows, int thread, int threads) {
#pragma unroll 1
    for (int i = thread; i < 2 * rows; i += threads) {
        const int row = i >> 1;
        uint4* const line = reinterpret_cast<uint4*>(panels + row * ROW_BYTES);
        unsigned from[4][4], to[4][4];
        const auto at = [&](int piece) { return (i & 1) * 4 + piece ^ row & 7; };
#pragma unroll
        for (int piece = 0; piece < 4; ++piece) {
            const uint4 words = line[at(piece)];
            from[piece][0] = words.x, from[piece][1] = words.y, from[piece][2] = words.z, from[piece][3] = words.w;
        }
#pragma unroll
        for (int piece = 0; piece < 4; ++piece)
#pragma unroll
            for (int t = 0; t < 4; ++t) {
                if constexpr (SCHEME == Scheme::kInt4) to[piece][t] = from[t][piece];
                else if constexpr (SCHEME == Scheme::kCodebook)  // a byte of W holds k 0, 2 or 4, 6 or 1, 3 or 5, 7
                    to[piece][t] = prmt(from[t][piece / 2 * 2], from[t][piece / 2 * 2 + 1], piece % 2 ? 0x7632 : 0x5410);
                else to[piece][t] = from[piece / 2 * 2 + t / 2][t % 2 * 2 + piece % 2];
            }
#pragma unroll
        for (int piece = 0; piece < 4; ++piece) line[at(piece)] = make_uint4(to[piece][0], to[piece][1], to[piece][2], to[piece][3]);
    }
}

// What a lane needs to unpack, and how: half a step of 128, of 64 rows of W of which the lane has `row` and the 8th after it.
template <class T, Scheme SCHEME, int GROUP_SIZE, int ROWS, int DEPTH, int COPIES>
struct Unpacker {
    static constexpr bool FOUR_BIT = GROUP_SIZE > 0;
    static constexpr int WIDTH = FOUR_BIT ? DEPTH / 2 : DEPTH, LOW = COPIES == 32 ? 7 : COPIES == 8 ? 5 : 2;  // bits below an entry's first code
    static constexpr int PIECES = FOUR_BIT ? 2 : 4;                                                       // of 16 bytes in half a step
    const char* table;
    int shift;      // of the lane's pair in a word
    unsigned copy;  // of the table, in bytes

    __device__ explicit Unpacker(const unsigned* pairs)
        : table(reinterpret_cast<const char*>(pairs)), shift(threadIdx.x % 4 * 4), copy(threadIdx.x % (COPIES > 0 ? COPIES : 1) * 4) {}

    __device__ __forceinline__ static int place(int row, int piece) {
        const int swizzled = WIDTH == 128 ? piece ^ (row & 7) : WIDTH == 64 ? piece ^ (row / 2 & 3) : piece ^ (row / 4 & 1);
        return row * WIDTH + (swizzled << 4);
    }
    __device__ __forceinline__ Factor factor(const char* scales, int group, int row) const {
        if constexpr (SCHEME == Scheme::kInt4) return factor_of<T>(reinterpret_cast<const unsigned*>(scales)[group * ROWS + row]);
        else return factor_of<T>(reinterpret_cast<const unsigned short*>(scales)[group * ROWS + row]);
    }
    // The same where x is sorted: what ldmatrix brings belongs to the lane alone, and shifts are constants.
    __device__ __forceinline__ void unpack_sorted(unsigned (&to)[4][4], const char* w, const char* scales, int half, int row) const {
        const int lane = threadIdx.x % 32, line = row - lane / 4 + lane / 8 % 2 * 8 + lane % 8;  // whose address the lane hands in
#pragma unroll
        for (int two = 0; two < PIECES; two += 2) {
            unsigned words[4];  // rows 0-7 and 8-15 of one piece, then of the next
            ldmatrix(words, w + place(line, half * PIECES + two + lane / 16));
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                Factor factors;
#pragma unroll
                for (int piece = 0; piece < 2; ++piece) {
                    const unsigned word = words[2 * piece + r];
                    if constexpr (FOUR_BIT) {
                        if (piece == 0 || GROUP_SIZE == 32) factors = factor(scales, (half * 64 + piece * 32) / (FOUR_BIT ? GROUP_SIZE : 1), row + 8 * r);
#pragma unroll
                        for (int pair = 0; pair < 4; ++pair) {
                            unsigned& fragment = to[2 * piece + pair / 2][pair % 2 * 2 + r];
                            if constexpr (SCHEME == Scheme::kInt4) {
                                fragment = int4_pair<T>(word >> 4 * pair, factors);
                            } else {
                                const int byte = pair / 2 + pair % 2 * 2;
                                const unsigned moved = 8 * byte < LOW ? word << (LOW - 8 * byte) : word >> (8 * byte - LOW);
                                const unsigned entry = lop3<(LOP3_A & LOP3_B) | LOP3_C>(moved, 0xffu << LOW, copy);
                                fragment = times<T>(*reinterpret_cast<const unsigned*>(table + entry), factors.scale);
                            }
                        }
                    } else if constexpr (SCHEME == Scheme::kInt8) {
                        to[two + piece][r] = int8_pair<T, 0, 1>(word ^ 0x80808080u);
                        to[two + piece][2 + r] = int8_pair<T, 2, 3>(word ^ 0x80808080u);
                    } else {
                        to[two + piece][r] = fp8_pair<T>(word & 0xffff);
                        to[two + piece][2 + r] = fp8_pair<T>(word >> 16);
                    }
                }
            }
        }
    }
    // `half` is 0 where a stage holds only half a step.
    __device__ __forceinline__ void unpack(unsigned (&to)[4][4], const char* w, const char* scales, int half, int row) const {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int at = row + 8 * r;
            Factor factors;
#pragma unroll
            for (int piece = 0; piece < PIECES; ++piece) {
                const char* const from = w + place(at, half * PIECES + piece);
                if constexpr (FOUR_BIT) {
                    if (piece == 0 || GROUP_SIZE == 32) factors = factor(scales, (half * 64 + piece * 32) / (FOUR_BIT ? GROUP_SIZE : 1), at);
                    const uint4 words = *reinterpret_cast<const uint4*>(from);
                    const unsigned own[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
                    for (int word = 0; word < 4; ++word) {
                        unsigned& fragment = to[2 * piece + word / 2][word % 2 * 2 + r];
                        if constexpr (SCHEME == Scheme::kInt4) {
                            fragment = int4_pair<T>(own[word] >> shift, factors);
                        } else {  // codes at bits `shift` and 16 + `shift` come to where they select an entry
                            const unsigned first = __funnelshift_l(own[word], own[word], LOW - shift);
                            const unsigned second = __funnelshift_l(own[word], own[word], LOW + 4 - 16 - shift);
                            const unsigned entry = lop3<(LOP3_A & LOP3_B) | LOP3_C>(
                                second, 0xfu << (LOW + 4), lop3<(LOP3_A & LOP3_B) | LOP3_C>(first, 0xfu << LOW, copy));
                            fragment = times<T>(*reinterpret_cast<const unsigned*>(table + entry), factors.scale);
                        }
                    }
                } else {
#pragma unroll
                    for (int high = 0; high < 2; ++high) {  // bytes 2t, 2t + 1, and those 8 further
                        const unsigned bytes = *reinterpret_cast<const unsigned short*>(from + 8 * high + shift / 2);
                        if constexpr (SCHEME == Scheme::kInt8) to[piece][2 * high + r] = int8_pair<T, 0, 1>(bytes ^ 0x8080u);
                        else to[piece][2 * high + r] = fp8_pair<T>(bytes);
                    }
                }
            }
        }
    }
};

// W unpacked into shared memory, as wgmma reads A there: 64 rows of 64 of k, 128 bytes each, swizzled. A thread of a warpgroup has 32 of k of a row.
template <class T, Scheme SCHEME, int GROUP_SIZE, int ROWS, int DEPTH, int COPIES>
struct WideUnpacker : Unpacker<T, SCHEME, GROUP_SIZE, ROWS, DEPTH, COPIES> {
    using Base = Unpacker<T, SCHEME, GROUP_SIZE, ROWS, DEPTH, COPIES>;
    using Base::Base;

    // Of `half` a stage (0 where it holds 64 of k), and of 64 rows from `first_row`.
    __device__ __forceinline__ void unpack(char* to, const char* w, const char* scales, int half, int first_row) const {
        const int thread = threadIdx.x % GROUP, own = thread / 2, quarter = thread % 2 * 4, row = first_row + own;
        const auto put = [&](int chunk, const unsigned(&pairs)[4]) {  // 8 of k
            *reinterpret_cast<uint4*>(to + own * ROW_BYTES + ((quarter + chunk ^ own & 7) << 4)) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        };
        if constexpr (Base::FOUR_BIT) {
            const Factor factors = Base::factor(scales, (half * 64 + thread % 2 * 32) / (Base::FOUR_BIT ? GROUP_SIZE : 1), row);
            const uint4 words = *reinterpret_cast<const uint4*>(w + Base::place(row, half * 2 + thread % 2));
            const unsigned each[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
            for (int chunk = 0; chunk < 4; ++chunk) {
                unsigned pairs[4];
                if constexpr (SCHEME == Scheme::kInt4) {
#pragma unroll
                    for (int pair = 0; pair < 4; ++pair) pairs[pair] = int4_pair<T>(each[chunk] >> 4 * pair, factors);
                } else {  // a byte holds k 0, 2 or 4, 6 or 1, 3 or 5, 7
                    unsigned found[4];
#pragma unroll
                    for (int byte = 0; byte < 4; ++byte) {
                        const unsigned moved = 8 * byte < Base::LOW ? each[chunk] << (Base::LOW - 8 * byte) : each[chunk] >> (8 * byte - Base::LOW);
                        const unsigned entry = lop3<(LOP3_A & LOP3_B) | LOP3_C>(moved, 0xffu << Base::LOW, Base::copy);
                        found[byte] = times<T>(*reinterpret_cast<const unsigned*>(Base::table + entry), factors.scale);
                    }
#pragma unroll
                    for (int pair = 0; pair < 4; ++pair) pairs[pair] = prmt(found[pair / 2], found[pair / 2 + 2], pair % 2 ? 0x7632 : 0x5410);
                }
                put(chunk, pairs);
            }
        } else {
#pragma unroll
            for (int piece = 0; piece < 2; ++piece) {
                const uint4 words = *reinterpret_cast<const uint4*>(w + Base::place(row, half * 4 + thread % 2 * 2 + piece));
                const unsigned each[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
                for (int chunk = 0; chunk < 2; ++chunk) {
                    unsigned pairs[4];
#pragma unroll
                    for (int pair = 0; pair < 4; ++pair) {
                        const unsigned word = each[2 * chunk + pair / 2];
                        if constexpr (SCHEME == Scheme::kInt8) {
                            pairs[pair] = pair % 2 == 0 ? int8_pair<T, 0, 1>(word ^ 0x80808080u) : int8_pair<T, 2, 3>(word ^ 0x80808080u);
                        } else {
                            pairs[pair] = fp8_pair<T>(pair % 2 == 0 ? word & 0xffff : word >> 16);
                        }
                    }
                    put(2 * piece + chunk, pairs);
                }
            }
        }
    }
};
