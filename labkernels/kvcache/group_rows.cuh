// What the tensor core kernels of decode attention share: the queries of a group as operands, tokens straight from memory into the registers that
// are multiplied, and parts of softmaxes put together.
#pragma once
#include <math_constants.h>

#include "approx.cuh"
#include "cache.cuh"
#include "fragments.cuh"
#include "mma.cuh"
#include "splits.cuh"
#include "warp.cuh"

constexpr float NOTHING_SEEN = -3e38f;  // instead of -inf, which would make NaN of -inf - -inf
constexpr float RESCALE_ABOVE = 8.0f;   // weights may be 2^8 times what they would be against the true maximum

template <int HEAD_DIM_, int ROW_TILES_, int WARPS_, int BLOCKS_>
struct Tiling {
    static constexpr int HEAD_DIM = HEAD_DIM_, ROW_TILES = ROW_TILES_, WARPS = WARPS_, BLOCKS = BLOCKS_;  // BLOCKS: on a multiprocessor
    static constexpr int ROWS = 8 * ROW_TILES, THREADS = 32 * WARPS;
};

// How a lane's loads are cut: of a key, 16 bytes in each of K_LOADS places; of a value, V_WORDS words in each of V_LOADS.
template <class C, int HEAD_DIM>
struct Cut {
    static constexpr int PER_WORD = 4 / sizeof(C), K_WORDS = 4, K_EACH = K_WORDS * PER_WORD, K_LOADS = HEAD_DIM / (4 * K_EACH);
    static constexpr int V_EACH = 4 * PER_WORD < HEAD_DIM / 8 ? 4 * PER_WORD : HEAD_DIM / 8;
    static constexpr int V_WORDS = V_EACH / PER_WORD, V_LOADS = HEAD_DIM / (8 * V_EACH);
    static constexpr int STEPS = HEAD_DIM / 16, STEP_WORDS = 4 / PER_WORD;  // 4 elements a lane and step: 2 words of 16-bit elements, or 1
};

template <int WORDS>
__device__ __forceinline__ void load_words(unsigned (&to)[WORDS], const void* from) {
    if constexpr (WORDS == 4) {
        const uint4 words = __ldcs(reinterpret_cast<const uint4*>(from));
        to[0] = words.x, to[1] = words.y, to[2] = words.z, to[3] = words.w;
    } else {
        const uint2 words = __ldcs(reinterpret_cast<const uint2*>(from));
        to[0] = words.x, to[1] = words.y;
    }
}

// Where 16 tokens lie: looked up before they are asked for.
struct Place {
    int page = 0, offset = 0;
    __device__ __forceinline__ Place() {}
    __device__ __forceinline__ Place(const Sequence& sequence, int token) : page(static_cast<int>(sequence.page(token))), offset(sequence.offset(token)) {}
};

// 16 keys of one head: lane 4 * g + t has, of the keys g and g + 8, the places t, t + 4, ...
template <class C, int HEAD_DIM>
struct Keys {
    using Cut = ::Cut<C, HEAD_DIM>;
    unsigned words[2][Cut::K_LOADS][Cut::K_WORDS];
    float scale[2][2];  // of the keys 8 * i + 2 * t and the next

    __device__ __forceinline__ void load(const C* k, const float* k_scale, const Sequence& sequence, Place place, int valid, const Problem& p) {
        const int g = lane_id() / 4, t = lane_id() % 4, offset = place.offset;
        const long long page = place.page;
        const C* first = k + page * p.k_page + sequence.head * p.k_head + offset * p.k_token + t * Cut::K_EACH;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const C* key = first + min(g + 8 * i, valid - 1) * p.k_token;
#pragma unroll
            for (int j = 0; j < Cut::K_LOADS; ++j) load_words(words[i][j], key + j * 4 * Cut::K_EACH);
        }
        if constexpr (sizeof(C) == 1) {
            const float* scales = k_scale + page * p.ks_page + sequence.head * p.ks_head + offset;
#pragma unroll
            for (int i = 0; i < 4; ++i) scale[i / 2][i % 2] = scales[min(8 * (i / 2) + 2 * t + i % 2, valid - 1)];
        }
    }
    // What the instruction for step `s`, 16 elements of the row, takes of the keys 8 * i to 8 * i + 7.
    template <class T>
    __device__ __forceinline__ void operand(unsigned (&b)[2], int i, int s) const {
        constexpr int STEPS_A_LOAD = Cut::K_WORDS / Cut::STEP_WORDS;
        const unsigned* from = words[i][s / STEPS_A_LOAD] + s % STEPS_A_LOAD * Cut::STEP_WORDS;
        if constexpr (sizeof(C) == 1) {
            b[0] = pair<T, C, 0, 1>(from[0], from[0]);
            b[1] = pair<T, C, 2, 3>(from[0], from[0]);
        } else {
            b[0] = from[0];
            b[1] = from[1];
        }
    }
};

// 16 values of one head: lane 4 * g + t has, of the values 2 * t, 2 * t + 1, 2 * t + 8 and 2 * t + 9, the places g, g + 8, ...
template <class C, int HEAD_DIM>
struct Values {
    using Cut = ::Cut<C, HEAD_DIM>;
    unsigned words[4][Cut::V_LOADS][Cut::V_WORDS];
    float scale[2][2];

    __device__ __forceinline__ void load(const C* v, const float* v_scale, const Sequence& sequence, Place place, int valid, const Problem& p) {
        const int g = lane_id() / 4, t = lane_id() % 4, offset = place.offset;
        const long long page = place.page;
        const C* first = v + page * p.v_page + sequence.head * p.v_head + offset * p.v_token + g * Cut::V_EACH;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const C* value = first + min(8 * (i / 2) + 2 * t + i % 2, valid - 1) * p.v_token;
#pragma unroll
            for (int j = 0; j < Cut::V_LOADS; ++j) load_words(words[i][j], value + j * 8 * Cut::V_EACH);
        }
        if constexpr (sizeof(C) == 1) {
            const float* scales = v_scale + page * p.vs_page + sequence.head * p.vs_head + offset;
#pragma unroll
            for (int i = 0; i < 4; ++i) scale[i / 2][i % 2] = scales[min(8 * (i / 2) + 2 * t + i % 2, valid - 1)];
        }
    }
    // The values from `valid` on count for nothing: what was read there may be anything, and 0 * NaN is NaN.
    __device__ __forceinline__ void forget(int valid) {
        const int t = lane_id() % 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (8 * (i / 2) + 2 * t + i % 2 < valid) continue;
            if constexpr (sizeof(C) == 1) scale[i / 2][i % 2] = 0.0f;
#pragma unroll
            for (int j = 0; j < Cut::V_LOADS * Cut::V_WORDS; ++j) words[i][j / Cut::V_WORDS][j % Cut::V_WORDS] = 0u;
        }
    }
    // Element E of the lane's place `j`, and the one half a place on, of all 16 values: 16 rows of v^T.
    template <class T, int E>
    __device__ __forceinline__ void operand(unsigned (&a)[4], int j) const {
        constexpr int F = E + Cut::V_EACH / 2, WORD_E = E / Cut::PER_WORD, WORD_F = F / Cut::PER_WORD, AT_E = E % Cut::PER_WORD, AT_F = F % Cut::PER_WORD;
        a[0] = pair<T, C, AT_E, AT_E>(words[0][j][WORD_E], words[1][j][WORD_E]);
        a[1] = pair<T, C, AT_F, AT_F>(words[0][j][WORD_F], words[1][j][WORD_F]);
        a[2] = pair<T, C, AT_E, AT_E>(words[2][j][WORD_E], words[3][j][WORD_E]);
        a[3] = pair<T, C, AT_F, AT_F>(words[2][j][WORD_F], words[3][j][WORD_F]);
    }
};

// A warp's queries, and what it has found for them so far. Of a tile of 8 rows lane 4 * g + t holds the maximum and the sum of row g; of the output
// of rows 2 * t and 2 * t + 1 the elements that Values::operand names.
template <class T, class C, class Tiling>
struct Warp {
    static constexpr int HEAD_DIM = Tiling::HEAD_DIM, ROW_TILES = Tiling::ROW_TILES;
    using Cut = ::Cut<C, HEAD_DIM>;
    unsigned query[Cut::STEPS][ROW_TILES][2];
    float max[ROW_TILES], sum[ROW_TILES], out[ROW_TILES][Cut::V_LOADS][Cut::V_EACH / 2][4];
    int row_limit[ROW_TILES];  // keys that row g sees

    __device__ __forceinline__ void begin(const T* q, const Sequence& sequence, int first_row, int length, const Problem& p) {
        const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; ++tile) {
            const int row = min(first_row + 8 * tile + g, p.rows() - 1);  // rows that are not there are copies of the last one
            max[tile] = NOTHING_SEEN;
            sum[tile] = 0.0f;
            row_limit[tile] = p.visible(row, length);
            const T* from = p.query(q, sequence.batch, sequence.head, row);
#pragma unroll
            for (int s = 0; s < Cut::STEPS; ++s) {
                constexpr int STEPS_A_LOAD = Cut::K_WORDS / Cut::STEP_WORDS;
                const int at = (t + 4 * (s / STEPS_A_LOAD)) * Cut::K_EACH + 4 * (s % STEPS_A_LOAD);
                const uint2 words = *reinterpret_cast<const uint2*>(from + at);
                query[s][tile][0] = words.x;
                query[s][tile][1] = words.y;
            }
#pragma unroll
            for (int i = 0; i < Cut::V_LOADS * Cut::V_EACH / 2; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) out[tile][i / (Cut::V_EACH / 2)][i % (Cut::V_EACH / 2)][j] = 0.0f;
        }
    }

    // Scores of 16 keys: of row g (tile 0) in scores[i][0] and [1] those of the keys 8 * i + 2 * t and the next, of row g + 8 in [2] and [3].
    __device__ __forceinline__ void multiply(float (&scores)[2][4], const Keys<C, HEAD_DIM>& keys) const {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) scores[i][j] = 0.0f;
#pragma unroll
        for (int s = 0; s < Cut::STEPS; ++s) {
            const unsigned a[4] = {query[s][0][0], ROW_TILES == 2 ? query[s][ROW_TILES - 1][0] : 0u, query[s][0][1],
                                   ROW_TILES == 2 ? query[s][ROW_TILES - 1][1] : 0u};
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                unsigned b[2];
                keys.template operand<T>(b, i, s);
                mma_m16n8k16<T>(scores[i], a, b, scores[i]);
            }
        }
    }

    // Scores become weights, in the operand that the second product takes.
    __device__ __forceinline__ void weigh(unsigned (&weights)[ROW_TILES][2], float (&scores)[2][4], const float (&k_scale)[2][2], const float (&v_scale)[2][2],
                                          int token, bool all_seen, float scale) {
        const int t = lane_id() % 4;
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; ++tile) {
            float largest = -CUDART_INF_F;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float& score = scores[i / 2][2 * tile + i % 2];
                score *= sizeof(C) == 1 ? scale * k_scale[i / 2][i % 2] : scale;
                if (!all_seen && token + 8 * (i / 2) + 2 * t + i % 2 >= row_limit[tile]) score = -CUDART_INF_F;
                largest = fmaxf(largest, score);
            }
            largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 2));
            if (__any_sync(FULL_WARP, largest > max[tile] + RESCALE_ABOVE)) rescale(tile, fmaxf(max[tile], largest));
            float p[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                p[i] = exp2_approx(scores[i / 2][2 * tile + i % 2] - max[tile]);
                if constexpr (sizeof(C) == 1) {
                    sum[tile] += p[i];
                    p[i] *= v_scale[i / 2][i % 2];
                }
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                weights[tile][i] = pack_pair<T>(p[2 * i], p[2 * i + 1]);
                if constexpr (sizeof(C) == 2) sum[tile] += sum_of_pair<T>(weights[tile][i]);  // as rounded: where one weight counts, its error cancels
            }
        }
    }
    __device__ __forceinline__ void rescale(int tile, float new_max) {
        const float factor = exp2_approx(max[tile] - new_max);
        max[tile] = new_max;
        sum[tile] *= factor;
        const int t = lane_id() % 4;
        const float even = __shfl_sync(FULL_WARP, factor, 8 * t), odd = __shfl_sync(FULL_WARP, factor, 8 * t + 4);
#pragma unroll
        for (int i = 0; i < Cut::V_LOADS * Cut::V_EACH / 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) out[tile][i / (Cut::V_EACH / 2)][i % (Cut::V_EACH / 2)][j] *= j % 2 ? odd : even;
    }

    template <int E = 0>
    __device__ __forceinline__ void add(const unsigned (&weights)[ROW_TILES][2], const Values<C, HEAD_DIM>& values) {
        if constexpr (E < Cut::V_EACH / 2) {
#pragma unroll
            for (int j = 0; j < Cut::V_LOADS; ++j) {
                unsigned a[4];
                values.template operand<T, E>(a, j);
#pragma unroll
                for (int tile = 0; tile < ROW_TILES; ++tile) mma_m16n8k16<T>(out[tile][j][E], a, weights[tile], out[tile][j][E]);
            }
            add<E + 1>(weights, values);
        }
    }

    // The tokens `token` to `token` + 15, and those every `stride` further on, before `end`. The first ones are in keys and values.
    __device__ __forceinline__ void walk(Keys<C, HEAD_DIM>& keys, Values<C, HEAD_DIM>& values, const C* k, const C* v, const float* k_scale,
                                         const float* v_scale, const Sequence& sequence, int length, int token, int stride, int end, const Problem& p) {
        Place next_place = token + stride < end ? Place(sequence, token + stride) : Place();
        for (;; token += stride) {
            const int next = token + stride, valid = min(CHUNK, length - next);
            const Place place = next_place;
            float scores[2][4], of_keys[2][2];
            unsigned weights[ROW_TILES][2];
            multiply(scores, keys);
            if constexpr (sizeof(C) == 1)
#pragma unroll
                for (int i = 0; i < 4; ++i) of_keys[i / 2][i % 2] = keys.scale[i / 2][i % 2];
            if (next < end) keys.load(k, k_scale, sequence, place, valid, p);
            if (next + stride < end) next_place = Place(sequence, next + stride);
            weigh(weights, scores, of_keys, values.scale, token, token + CHUNK <= length - p.queries + 1, p.scale);
            add(weights, values);
            if (next >= end) return;
            values.load(v, v_scale, sequence, place, valid, p);
        }
    }
};

// Four elements of a row's undivided output, the sum of its weights, and what they are relative to. Parts are added in a fixed order.
struct Part {
    float max = NOTHING_SEEN, sum = 0.0f;
    float4 out = {0.0f, 0.0f, 0.0f, 0.0f};

    // N more of them: their (maximum, sum), and their outputs.
    template <int N>
    __device__ __forceinline__ void add(const float2 (&stats)[N], const float4 (&outs)[N]) {
        float common = max;
#pragma unroll
        for (int i = 0; i < N; ++i) common = fmaxf(common, stats[i].x);
        const float own = exp2_approx(max - common);
        max = common;
        sum *= own;
        out = {own * out.x, own * out.y, own * out.z, own * out.w};
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float factor = exp2_approx(stats[i].x - common);
            sum += factor * stats[i].y;
            out = {out.x + factor * outs[i].x, out.y + factor * outs[i].y, out.z + factor * outs[i].z, out.w + factor * outs[i].w};
        }
    }
    template <class T>
    __device__ __forceinline__ void store(T* to) const {
        const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
        *reinterpret_cast<uint2*>(to) = {pack_pair<T>(out.x * factor, out.y * factor), pack_pair<T>(out.z * factor, out.w * factor)};
    }
};

// Where the warps of a block put what they have found.
template <class T, class C, class Tiling>
struct Meeting {
    static constexpr int WARPS = Tiling::WARPS, ROWS = Tiling::ROWS, QUADS = Tiling::HEAD_DIM / 4;
    using Cut = ::Cut<C, Tiling::HEAD_DIM>;
    float4 out[WARPS][ROWS][QUADS];
    float2 stats[WARPS][ROWS];  // maximum and sum
    int last;

    __device__ __forceinline__ void put(const Warp<T, C, Tiling>& warp, int rows) {
        const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
        for (int tile = 0; tile < Tiling::ROW_TILES; ++tile) {
            float sum = warp.sum[tile];
            sum += __shfl_xor_sync(FULL_WARP, sum, 1);
            sum += __shfl_xor_sync(FULL_WARP, sum, 2);
            if (t == 0) stats[warp_id()][8 * tile + g] = {warp.max[tile], sum};
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
                const int row = 8 * tile + 2 * t + odd;
                if (row >= rows) continue;
#pragma unroll
                for (int j = 0; j < Cut::V_LOADS; ++j)
#pragma unroll
                    for (int e = 0; e < Cut::V_EACH; e += 4) {
                        constexpr int HALF = Cut::V_EACH / 2;
                        const float(*found)[4] = &warp.out[tile][j][e % HALF];
                        const int half = e / HALF * 2 + odd;
                        out[warp_id()][row][((8 * j + g) * Cut::V_EACH + e) / 4] = {found[0][half], found[1][half], found[2][half], found[3][half]};
                    }
            }
        }
    }
    // What all warps together have for elements 4 * quad to 4 * quad + 3 of a row.
    __device__ __forceinline__ Part all(int row, int quad) const {
        Part part;
        float2 each[WARPS];
        float4 outs[WARPS];
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) each[warp] = stats[warp][row], outs[warp] = out[warp][row][quad];
        part.add(each, outs);
        return part;
    }
};
