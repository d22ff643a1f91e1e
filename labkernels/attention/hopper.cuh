// What the Hopper attention kernels share: shared memory, the order of the work, the warpgroups' turns, and the softmax of a tile.
#pragma once
#include "approx.cuh"
#include "ldmatrix.cuh"
#include "named_barrier.cuh"
#include "pack.cuh"
#include "strides.cuh"
#include "tma.cuh"
#include "visible.cuh"
#include "warpgroups.cuh"
#include "wgmma.cuh"

// Tiles of q, k and v are panels of 64 columns, one below the other.
template <int HEAD_DIM, int BLOCK_Q_, int BLOCK_K, int STAGES, int Q_BUFFERS>
struct AttentionLayout {
    static constexpr int BLOCK_Q = BLOCK_Q_, PANELS = HEAD_DIM / 64, PANEL_BYTES = BLOCK_K * ROW_BYTES;
    static constexpr int Q_BYTES = PANELS * BLOCK_Q * ROW_BYTES, KV_BYTES = PANELS * PANEL_BYTES;
    char* base;

    __device__ explicit AttentionLayout(char* shared) : base(shared) {}
    __device__ char* q(int buffer, int panel) const { return base + buffer * Q_BYTES + panel * BLOCK_Q * ROW_BYTES; }
    __device__ char* k(int stage, int panel) const { return base + Q_BUFFERS * Q_BYTES + stage * KV_BYTES + panel * PANEL_BYTES; }
    __device__ char* v(int stage, int panel) const { return k(STAGES + stage, panel); }
    __device__ Mbarrier* q_full() const { return reinterpret_cast<Mbarrier*>(k(2 * STAGES, 0)); }
    __device__ Mbarrier* q_empty() const { return q_full() + Q_BUFFERS; }
    __device__ Mbarrier* k_full() const { return q_empty() + Q_BUFFERS; }
    __device__ Mbarrier* k_empty() const { return k_full() + STAGES; }
    __device__ Mbarrier* v_full() const { return k_empty() + STAGES; }
    __device__ Mbarrier* v_empty() const { return v_full() + STAGES; }
};

struct Item {
    int batch, head, first_query;
};

// The work of a block: every gridDim.x-th item. Where rows differ in length the longest come first, and every other round goes
// backwards, so that each block has about as much to do.
template <int BLOCK_Q>
struct Schedule {
    int batches, heads, tiles;
    bool longest_first;

    __device__ Schedule(int batches, int heads, int seq_len, bool longest_first)
        : batches(batches), heads(heads), tiles((seq_len + BLOCK_Q - 1) / BLOCK_Q), longest_first(longest_first) {}
    __device__ int turns() const { return (batches * heads * tiles + gridDim.x - 1) / gridDim.x; }
    __device__ bool item(int turn, Item& item) const {
        const bool backwards = longest_first && turn % 2;
        const int index = turn * gridDim.x + (backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
        if (index >= batches * heads * tiles) return false;
        const int matrix = longest_first ? index % (batches * heads) : index / tiles;
        const int tile = longest_first ? tiles - 1 - index / (batches * heads) : index % tiles;
        item = {matrix / heads, matrix % heads, tile * BLOCK_Q};
        return true;
    }
};

// Warpgroups take turns at the tensor cores: while one has its products computed, the others do their softmax.
template <int CONSUMERS>
struct Turns {
    static constexpr int FIRST = 4;  // of the named barriers
    int warpgroup;

    __device__ explicit Turns(int warpgroup) : warpgroup(warpgroup) {
        if (CONSUMERS > 1 && warpgroup == CONSUMERS - 1) named_barrier_arrive(FIRST, 2 * GROUP);
    }
    __device__ __forceinline__ void take() const {
        if (CONSUMERS > 1) named_barrier_sync(FIRST + warpgroup, 2 * GROUP);
    }
    __device__ __forceinline__ void pass() const {
        if (CONSUMERS > 1) named_barrier_arrive(FIRST + (warpgroup + 1) % CONSUMERS, 2 * GROUP);
    }
    __device__ __forceinline__ void end() const {
        if (warpgroup == 0) take();
    }
};

// The running softmax of a thread's two rows, `row` and `row + 8`. Scores are in the accumulators of a 64 x BLOCK_K wgmma.
template <int BLOCK_K, int MASK, class T>
struct Softmax {
    float scale, highest[2] = {-CUDART_INF_F, -CUDART_INF_F}, sum[2] = {0.0f, 0.0f}, correction[2];

    __device__ explicit Softmax(float scale) : scale(scale) {}  // of a score, to units of log 2

    // Scores become exp(score - highest score of the row so far); what was summed before must be multiplied by `correction`.
    template <bool HIDE>
    __device__ __forceinline__ void step(float (&s)[BLOCK_K / 2], const Window& window, const Mask<MASK, T>& mask, int query, int first_key) {
        const int lane = threadIdx.x % 32;
        const float factor = MASK ? 1.0f : scale;
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const int q = query + 8 * row, first = window.first_key(q) - first_key, end = window.end_key(q) - first_key;
            float top = highest[row];
#pragma unroll
            for (int i = 2 * row; i < BLOCK_K / 2; i += i % 2 ? 3 : 1) {
                if (HIDE) {
                    const int key = 8 * (i / 4) + lane % 4 * 2 + i % 2;
                    const bool seen = key >= first && key < end;
                    if (MASK) s[i] = seen && q < window.seq_len ? mask.apply(s[i] * scale, q, first_key + key) : -CUDART_INF_F;
                    else s[i] = seen ? s[i] : -CUDART_INF_F;
                }
                top = fmaxf(top, s[i]);
            }
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            const float shift = top == -CUDART_INF_F ? 0.0f : top * factor;
            correction[row] = exp2_approx(highest[row] * factor - shift);
            highest[row] = top;
            float total = 0.0f;
#pragma unroll
            for (int i = 2 * row; i < BLOCK_K / 2; i += i % 2 ? 3 : 1) {
                s[i] = exp2_approx(fmaf(s[i], factor, -shift));
                total += s[i];
            }
            sum[row] = sum[row] * correction[row] + total;
        }
    }

    template <int COUNT>
    __device__ __forceinline__ void rescale(float (&o)[COUNT]) const {
        if (!__any_sync(0xffffffffu, correction[0] != 1.0f || correction[1] != 1.0f)) return;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) o[i] *= correction[i / 2 % 2];
    }

    // Divides by the sums. A row that saw no key is zero.
    template <int COUNT>
    __device__ __forceinline__ void finish(float (&o)[COUNT]) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 1);
            sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 2);
        }
        const float inverse[2] = {sum[0] == 0.0f ? 0.0f : 1.0f / sum[0], sum[1] == 0.0f ? 0.0f : 1.0f / sum[1]};
#pragma unroll
        for (int i = 0; i < COUNT; ++i) o[i] *= inverse[i / 2 % 2];
    }

    __device__ float lse(int row) const { return (highest[row] * (MASK ? 1.0f : scale) + log2f(sum[row])) * 0.6931471805599453f; }
};
