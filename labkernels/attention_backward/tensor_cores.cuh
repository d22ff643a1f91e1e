// The parts of v2 (v2_tensor_cores.cu): how the work is split, what lies where in shared memory, and what a warp does with its rows.
#pragma once
#include <math_constants.h>

#include "../attention/swizzled_rows.cuh"
#include "approx.cuh"
#include "backward.cuh"
#include "ldmatrix.cuh"
#include "mma.cuh"
#include "opaque.cuh"
#include "warp.cuh"

// How the work is split.
template <int HEAD_DIM_,   // head_dim or more; the rest is filled with zeros
          int PAIRS_,      // of warps, a block
          int ROW_TILES_,  // 16 keys each, a pair
          int QUERIES_,    // a tile
          int BLOCKS_>     // that a multiprocessor holds
struct Tiling {
    static constexpr int HEAD_DIM = HEAD_DIM_, PAIRS = PAIRS_, ROW_TILES = ROW_TILES_, QUERIES = QUERIES_, BLOCKS = BLOCKS_;
    static constexpr int WARPS = 2 * PAIRS, THREADS = 32 * WARPS, PAIR_KEYS = 16 * ROW_TILES, KEYS = PAIRS * PAIR_KEYS;
    // Of a tile's dq each warp sums a part: the block's warps stand side by side in rows of 32 queries.
    static constexpr int DQ_ROWS = 32, DQ_COLUMNS = HEAD_DIM * QUERIES / DQ_ROWS / WARPS, DQ_FRAGMENTS = DQ_ROWS / 16 * (DQ_COLUMNS / 8);
    static_assert(DQ_COLUMNS % 16 == 0, "ldmatrix takes 16 columns");
};

template <class Tiling>
struct Layout {
    static constexpr int ROW_BYTES = 2 * Tiling::HEAD_DIM, KEYS_BYTES = Tiling::KEYS * ROW_BYTES, QUERIES_BYTES = Tiling::QUERIES * ROW_BYTES;
    static constexpr int P_BYTES = Tiling::PAIR_KEYS * Tiling::QUERIES * 2, DS_BYTES = Tiling::PAIRS * P_BYTES;
    char* base;

    __device__ char* keys() const { return base; }
    __device__ char* values() const { return base + KEYS_BYTES; }
    __device__ char* queries(int stage) const { return base + 2 * KEYS_BYTES + stage * QUERIES_BYTES; }
    __device__ char* grads(int stage) const { return queries(2 + stage); }
    __device__ char* ds(int buffer) const { return queries(4) + buffer * DS_BYTES; }
    __device__ uint4* p(int pair) const { return reinterpret_cast<uint4*>(ds(2) + pair * P_BYTES); }
    __device__ float* lse(int stage) const { return reinterpret_cast<float*>(ds(3)) + stage * Tiling::QUERIES; }
    __device__ float* delta(int stage) const { return lse(2 + stage); }
};


__device__ __forceinline__ void add_four(float4* sum, float4 values) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    atomicAdd(sum, values);
#else
    float* each = reinterpret_cast<float*>(sum);
    atomicAdd(each, values.x), atomicAdd(each + 1, values.y), atomicAdd(each + 2, values.z), atomicAdd(each + 3, values.w);
#endif
}

// One warp's part. Lane 4 * g + t holds the rows g and g + 8 of each 16 and the columns 2 * t and 2 * t + 1 of each 8 of every product.
template <class T, class Tiling>
struct Warp {
    static constexpr int HEAD_DIM = Tiling::HEAD_DIM, ROW_TILES = Tiling::ROW_TILES, QUERIES = Tiling::QUERIES;
    static constexpr int STEPS = HEAD_DIM / 16, CHUNKS = QUERIES / 16;
    using Row = Rows<HEAD_DIM>;
    using QueryRow = Rows<QUERIES>;  // of ds, transposed: a row of queries for each key
    using Scores = float[ROW_TILES][QUERIES / 8][4];
    using Weights = unsigned[CHUNKS][ROW_TILES][4];

    float sum[ROW_TILES][HEAD_DIM / 8][4] = {};  // of dv, or of dk

    // What the lane hands to ldmatrix for a 16 x 16 block: by rows, left half first, or by columns, upper half first. Worked out in each
    // product again, for registers are scarce.
    template <class Row>
    __device__ __forceinline__ static int by_rows() {
        const int lane = opaque(lane_id());
        return Row::at(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    }
    __device__ __forceinline__ static int by_columns() {
        const int lane = opaque(lane_id());
        return Row::at(lane % 16, lane / 16);
    }
    __device__ __forceinline__ static int group() { return opaque(lane_id()) / 4; }
    __device__ __forceinline__ static int pair_column() { return opaque(lane_id()) % 4 * 2; }

    // scores = own rows^T, keys x queries: of k and q, or of v and grad.
    __device__ __forceinline__ void multiply(Scores& scores, const char* own, const char* rows) {
        const int own_lane = by_columns(), lane = by_rows<Row>();
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            unsigned left[ROW_TILES][4];
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i) ldmatrix(left[i], own + Row::block(own_lane, i, step));
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                unsigned right[4];
                ldmatrix(right, rows + Row::block(lane, chunk, step));
                const unsigned first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
                for (int i = 0; i < ROW_TILES; ++i) {
                    auto &score = scores[i][2 * chunk], &next = scores[i][2 * chunk + 1];
                    if (step == 0) score[0] = score[1] = score[2] = score[3] = next[0] = next[1] = next[2] = next[3] = 0.0f;
                    mma_m16n8k16<T>(score, left[i], first, score);
                    mma_m16n8k16<T>(next, left[i], second, next);
                }
            }
        }
    }

    // sum += weights rows: of P and grad, or of ds and q.
    __device__ __forceinline__ void accumulate(const Weights& weights, const char* rows) {
        const int lane = by_columns();
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
#pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                unsigned right[4];
                ldmatrix_trans(right, rows + Row::block(lane, chunk, step));
                const unsigned first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
                for (int i = 0; i < ROW_TILES; ++i) {
                    mma_m16n8k16<T>(sum[i][2 * step], weights[chunk][i], first, sum[i][2 * step]);
                    mma_m16n8k16<T>(sum[i][2 * step + 1], weights[chunk][i], second, sum[i][2 * step + 1]);
                }
            }
        }
    }

    // Gives what is hidden a score of -inf; scale becomes what the scores are still to be multiplied by.
    template <int MASK, class Element>
    __device__ __forceinline__ static void hide(Scores& scores, float& scale, bool hides, const Window& window, const Mask<MASK, Element>& mask,
                                                int first_query, int first_key, int pair_column) {
        const int group = Warp::group();
        if (MASK == MASK_NONE && !hides) return;
#pragma unroll
        for (int row = 0; row < 2 * ROW_TILES; ++row) {
            const int i = row / 2, half = row % 2, key = first_key + 16 * i + 8 * half + group;
            const int first = window.first_query(key), end = key < window.kv_len ? window.end_query(key) : 0;
#pragma unroll
            for (int n = 0; n < QUERIES / 4; ++n) {
                const int query = first_query + n / 2 * 8 + pair_column + n % 2;
                float& score = scores[i][n / 2][2 * half + n % 2];
                score = query >= first && query < end ? mask.apply(score * scale, query, key) : -CUDART_INF_F;
            }
        }
        scale = 1.0f;
    }

    // P from scores.
    template <int MASK>
    __device__ __forceinline__ void exponentiate(Weights& weights, Scores& scores, const float* lse, bool hides, const Window& window,
                                                 const Mask<MASK, T>& mask, float scale, int first_query, int first_key) {
        const int pair_column = this->pair_column();
        hide(scores, scale, hides, window, mask, first_query, first_key, pair_column);
#pragma unroll
        for (int n = 0; n < QUERIES / 8; ++n) {
            const float2 row_lse = *reinterpret_cast<const float2*>(lse + 8 * n + pair_column);
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float* score = scores[i][n] + 2 * half;
                    weights[n / 2][i][n % 2 * 2 + half] =
                        pack_pair<T>(exp2_approx(fmaf(score[0], scale, -row_lse.x)), exp2_approx(fmaf(score[1], scale, -row_lse.y)));
                }
            }
        }
    }

    __device__ __forceinline__ void hand_over(uint4* place, const Weights& weights) const {
#pragma unroll
        for (int n = 0; n < CHUNKS * ROW_TILES; ++n) {
            place[32 * n + lane_id()] = reinterpret_cast<const uint4&>(weights[n / ROW_TILES][n % ROW_TILES]);
        }
    }

    // ds = P * (dp - delta), for its own product and, transposed, in shared memory for dq's.
    __device__ __forceinline__ void differentiate(Weights& weights, const Scores& dp, const uint4* p, const float* delta, char* ds) const {
        const int group = this->group(), pair_column = this->pair_column();
#pragma unroll
        for (int n = 0; n < CHUNKS * ROW_TILES; ++n) {
            const int chunk = n / ROW_TILES, i = n % ROW_TILES;
            const uint4 four = p[32 * n + lane_id()];
            const unsigned own[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                const int right = part / 2, half = part % 2;
                const float2 row_delta = *reinterpret_cast<const float2*>(delta + 16 * chunk + 8 * right + pair_column);
                float low, high;
                unpack_pair<T>(own[part], low, high);
                const float* pair = dp[i][2 * chunk + right] + 2 * half;
                weights[chunk][i][part] = pack_pair<T>(low * (pair[0] - row_delta.x), high * (pair[1] - row_delta.y));
                *reinterpret_cast<unsigned*>(ds + QueryRow::at(16 * i + 8 * half + group, 2 * chunk + right) + pair_column * 2) = weights[chunk][i][part];
            }
        }
    }

    // This warp's part of dq = ds k, added to the sums in memory, where it lies as the lanes hold it.
    template <bool DETERMINISTIC>
    __device__ __forceinline__ void add_dq(float4* sums, int* turn, int before, const char* ds, const char* keys) const {
        constexpr int COLUMNS = Tiling::DQ_COLUMNS, ACROSS = HEAD_DIM / COLUMNS;
        const int own_warp = opaque(warp_id()), down = own_warp / ACROSS * 2, right = own_warp % ACROSS * (COLUMNS / 16);
        const int ds_lane = by_rows<QueryRow>(), lane = by_columns();
        float dq[2][COLUMNS / 8][4] = {};
#pragma unroll
        for (int step = 0; step < Tiling::KEYS / 16; ++step) {
            unsigned left[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) ldmatrix_trans(left[i], ds + QueryRow::block(ds_lane, step, down + i));
#pragma unroll
            for (int column = 0; column < COLUMNS / 16; ++column) {
                unsigned key[4];
                ldmatrix_trans(key, keys + Row::block(lane, step, right + column));
                const unsigned first[2] = {key[0], key[1]}, second[2] = {key[2], key[3]};
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    mma_m16n8k16<T>(dq[i][2 * column], left[i], first, dq[i][2 * column]);
                    mma_m16n8k16<T>(dq[i][2 * column + 1], left[i], second, dq[i][2 * column + 1]);
                }
            }
        }
        add_sums<DETERMINISTIC>(sums, turn, before, dq);
    }

    // In deterministic mode when it is this block's turn.
    template <bool DETERMINISTIC>
    __device__ __forceinline__ static void add_sums(float4* sums, int* turn, int before, const float (&dq)[2][Tiling::DQ_COLUMNS / 8][4]) {
        if (DETERMINISTIC) {
            if (lane_id() == 0) wait_for_turn(turn, before);
            __syncwarp();
        }
#pragma unroll
        for (int n = 0; n < Tiling::DQ_FRAGMENTS; ++n) {
            const float* four = dq[n % 2][n / 2];
            add_four(sums + 32 * n + lane_id(), make_float4(four[0], four[1], four[2], four[3]));
        }
        if (DETERMINISTIC) {
            __threadfence();
            __syncwarp();
            if (lane_id() == 0) pass_turn(turn);
        }
    }
};
