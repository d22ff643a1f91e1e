// What v2 and v3 share: a warp that walks over tokens, and the blocks' warps that put together what they found.
#pragma once
#include <math_constants.h>

#include "approx.cuh"
#include "cache.cuh"
#include "vector.cuh"
#include "warp.cuh"

constexpr int WARPS = 8;                // of a block
constexpr int AT_A_TIME = 4;            // tokens that a warp reads before it uses any of them
constexpr float NOTHING_SEEN = -3e38f;  // instead of -inf, which would make NaN of -inf - -inf

// A row's elements in a warp: lane l holds l * VALUES to l * VALUES + VALUES - 1. Read VALUES at a time if WIDTH is VALUES, else one by one.
template <int VALUES, int WIDTH, class C>
__device__ void load_row(const C* row, int head_dim, float (&values)[VALUES]) {
    const int first = lane_id() * VALUES;
    if constexpr (WIDTH == VALUES) {
        if (first < head_dim) load_vector(row + first, values);
        else for (int i = 0; i < VALUES; ++i) values[i] = 0.0f;
    } else {
#pragma unroll
        for (int i = 0; i < VALUES; ++i) values[i] = first + i < head_dim ? to_float(row[first + i]) : 0.0f;
    }
}

// Softmax of some tokens, and their values' sum, not yet divided: for each of ROWS queries that share a head of k and v.
template <int VALUES, int ROWS>
struct Found {
    float max[ROWS], sum[ROWS], out[ROWS][VALUES];

    __device__ Found() {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            max[r] = NOTHING_SEEN;
            sum[r] = 0.0f;
#pragma unroll
            for (int i = 0; i < VALUES; ++i) out[r][i] = 0.0f;
        }
    }
    // N more tokens for row r: their scores, -inf for one that it does not see, and their values, each times its weight.
    template <int N>
    __device__ void add(int r, const float (&scores)[N], const float (&weights)[N], const float (&values)[N][VALUES]) {
        float largest = max[r];
#pragma unroll
        for (int n = 0; n < N; ++n) largest = fmaxf(largest, scores[n]);
        const float factor = exp2_approx(max[r] - largest);
        max[r] = largest;
        sum[r] *= factor;
#pragma unroll
        for (int i = 0; i < VALUES; ++i) out[r][i] *= factor;
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const float p = exp2_approx(scores[n] - largest);
            sum[r] += p;
#pragma unroll
            for (int i = 0; i < VALUES; ++i) out[r][i] += p * weights[n] * values[n][i];
        }
    }
};

// The tokens from `first` to `end` - 1, every WARPS-th group of them by each warp of the block.
template <int VALUES, int WIDTH, int ROWS, class T, class C>
__device__ void walk(Found<VALUES, ROWS>& found, const T* q, const C* k, const C* v, const float* k_scale, const float* v_scale, const Sequence& sequence,
                     int first_row, int rows, int length, int first, int end, const Problem& problem) {
    float query[ROWS][VALUES];
    int visible[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int row = min(first_row + r, rows - 1);
        load_row<VALUES, 1>(problem.query(q, sequence.batch, sequence.head, row), problem.head_dim, query[r]);
        visible[r] = min(end, problem.visible(row, length));
    }

    for (int token = first + AT_A_TIME * warp_id(); token < end; token += AT_A_TIME * WARPS) {
        float key[AT_A_TIME][VALUES], value[AT_A_TIME][VALUES], key_scale[AT_A_TIME], value_scale[AT_A_TIME];
#pragma unroll
        for (int i = 0; i < AT_A_TIME; ++i) {
            const int at = min(token + i, end - 1);
            load_row<VALUES, WIDTH>(k + sequence.element(at, problem.k_page, problem.k_head, problem.k_token), problem.head_dim, key[i]);
            load_row<VALUES, WIDTH>(v + sequence.element(at, problem.v_page, problem.v_head, problem.v_token), problem.head_dim, value[i]);
            key_scale[i] = k_scale ? k_scale[sequence.scale(at, problem.ks_page, problem.ks_head)] : 1.0f;
            value_scale[i] = v_scale ? v_scale[sequence.scale(at, problem.vs_page, problem.vs_head)] : 1.0f;
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            float scores[AT_A_TIME];
#pragma unroll
            for (int i = 0; i < AT_A_TIME; ++i) {
                float dot = 0.0f;
#pragma unroll
                for (int j = 0; j < VALUES; ++j) dot += query[r][j] * key[i][j];
                dot = warp_sum(dot);
                scores[i] = token + i < visible[r] ? dot * key_scale[i] * problem.scale : -CUDART_INF_F;
            }
            found.add(r, scores, value_scale, value);
        }
    }
}

// Where the warps' findings for one row meet.
template <int VALUES, int ROWS>
struct Meeting {
    float max[WARPS][ROWS], sum[WARPS][ROWS], out[WARPS][ROWS][32 * VALUES];
};

// Puts the findings of all warps together and hands row, element, the largest score, the sum of weights and the undivided output to `use`.
template <int VALUES, int ROWS, class Use>
__device__ void meet(const Found<VALUES, ROWS>& found, Meeting<VALUES, ROWS>& meeting, int rows, int head_dim, Use use) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        if (lane_id() == 0) {
            meeting.max[warp_id()][r] = found.max[r];
            meeting.sum[warp_id()][r] = found.sum[r];
        }
#pragma unroll
        for (int i = 0; i < VALUES; ++i) meeting.out[warp_id()][r][lane_id() * VALUES + i] = found.out[r][i];
    }
    __syncthreads();
    for (int at = threadIdx.x; at < rows * head_dim; at += blockDim.x) {
        const int r = at / head_dim, d = at % head_dim;
        float max = NOTHING_SEEN, sum = 0.0f, out = 0.0f;
        for (int warp = 0; warp < WARPS; ++warp) max = fmaxf(max, meeting.max[warp][r]);
        for (int warp = 0; warp < WARPS; ++warp) {
            const float factor = exp2_approx(meeting.max[warp][r] - max);
            sum += factor * meeting.sum[warp][r];
            out += factor * meeting.out[warp][r][d];
        }
        use(r, d, max, sum, out);
    }
}
