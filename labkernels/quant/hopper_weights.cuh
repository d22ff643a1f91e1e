// What the kernels of v5 share: a block's shared memory, and how a tile of W in it becomes A fragments of wgmma.
#pragma once
#include <cuda_fp8.h>

#include "../matmul/hopper.cuh"
#include "dequantise.cuh"

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

// What a lane needs to unpack, and how: half a step of 128, of 64 rows of W of which the lane has `row` and the 8th after it.
template <class T, Scheme SCHEME, int GROUP_SIZE, int ROWS, int DEPTH, int COPIES>
struct Unpacker {
    static constexpr bool FOUR_BIT = GROUP_SIZE > 0;
    static constexpr int WIDTH = FOUR_BIT ? DEPTH / 2 : DEPTH;
    static constexpr int LOW = COPIES == 32 ? 7 : COPIES == 16 ? 6 : COPIES == 8 ? 5 : 2;  // bits below an entry's first code
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
