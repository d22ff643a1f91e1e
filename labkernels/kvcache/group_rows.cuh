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
constexpr float SMALLEST_LOG2 = -100.0f;  // of a value's scale
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

// a * stride, neither negative, where both fit into 32 bits: one instruction, where 64 bits take four. No stride is longer (tensor_cores.py).
__device__ __forceinline__ unsigned long long times(int a, long long stride) {
    return static_cast<unsigned long long>(static_cast<unsigned>(a)) * static_cast<unsigned>(stride);
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
    float scale;  // of the key that has this lane's number; in lanes 16 to 31 those of the values

    __device__ __forceinline__ void load(const C* k, const float* k_scale, const float* v_scale, const Sequence& sequence, Place place, int valid,
                                         const Problem& p) {
        const int g = lane_id() / 4, t = lane_id() % 4;
        const C* first = k + times(sequence.head, p.k_head) + t * Cut::K_EACH + times(place.page, p.k_page) + times(place.offset, p.k_token);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const C* key = first + times(min(g + 8 * i, valid - 1), p.k_token);
#pragma unroll
            for (int j = 0; j < Cut::K_LOADS; ++j) load_words(words[i][j], key + j * 4 * Cut::K_EACH);
        }
        if constexpr (sizeof(C) == 1) {
            const bool of_key = lane_id() < CHUNK;
            const float* scales = of_key ? k_scale + times(sequence.head, p.ks_head) + times(place.page, p.ks_page)
                                         : v_scale + times(sequence.head, p.vs_head) + times(place.page, p.vs_page);
            scale = scales[place.offset + min(lane_id() % CHUNK, valid - 1)];
        }
    }
    // Scales from token `valid` on may be anything.
    __device__ __forceinline__ void forget(int valid) {
        if (sizeof(C) == 1 && lane_id() % CHUNK >= valid) scale = 0.0f;
    }
    // What the instruction for step `s`, 16 elements of the row, takes of the keys 8 * i to 8 * i + 7.
    __device__ __forceinline__ void operand(unsigned (&b)[2], int i, int s) const {
        constexpr int STEPS_A_LOAD = Cut::K_WORDS / Cut::STEP_WORDS;
        const unsigned* from = words[i][s / STEPS_A_LOAD] + s % STEPS_A_LOAD * Cut::STEP_WORDS;
        if constexpr (sizeof(C) == 1) {
            key_pairs<C>(b, from[0]);
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

    __device__ __forceinline__ void load(const C* v, const Sequence& sequence, Place place, int valid, const Problem& p) {
        const int g = lane_id() / 4, t = lane_id() % 4;
        const C* first = v + times(sequence.head, p.v_head) + g * Cut::V_EACH + times(place.page, p.v_page) + times(place.offset, p.v_token);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const C* value = first + times(min(8 * (i / 2) + 2 * t + i % 2, valid - 1), p.v_token);
#pragma unroll
            for (int j = 0; j < Cut::V_LOADS; ++j) load_words(words[i][j], value + j * 8 * Cut::V_EACH);
        }
    }
    // The values from `valid` on count for nothing: what was read there may be anything, and 0 * NaN is NaN.
    __device__ __forceinline__ void forget(int valid) {
        const int t = lane_id() % 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (8 * (i / 2) + 2 * t + i % 2 < valid) continue;
#pragma unroll
            for (int j = 0; j < Cut::V_LOADS * Cut::V_WORDS; ++j) words[i][j / Cut::V_WORDS][j % Cut::V_WORDS] = 0u;
        }
    }
    // Of all 16 values the elements of word WORD of the lane's place `j`, and those half a place on: PER_WORD times 16 rows of v^T.
    __device__ __forceinline__ void operands(unsigned (&a)[Cut::PER_WORD][4], int j, int word) const {
        unsigned pairs[4][Cut::PER_WORD];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int at = word + i % 2 * (Cut::V_WORDS / 2);
            value_pairs<C>(pairs[i], words[i / 2 * 2][j][at], words[i / 2 * 2 + 1][j][at]);
        }
#pragma unroll
        for (int e = 0; e < Cut::PER_WORD; ++e)
#pragma unroll
            for (int i = 0; i < 4; ++i) a[e][i] = pairs[i][e];
    }
};

// A warp's queries, and what it has found for them so far. Of a tile of 8 rows lane 4 * g + t holds the maximum and the sum of row g; of the output
// of rows 2 * t and 2 * t + 1 the elements that Values::operands names.
// Queries of a quantised cache are multiplied as halves, each row divided by a power of two so that none is too large.
template <class T, class C, class Tiling>
struct Warp {
    static constexpr int HEAD_DIM = Tiling::HEAD_DIM, ROW_TILES = Tiling::ROW_TILES;
    static constexpr bool QUANTISED = sizeof(C) == 1;
    using Cut = ::Cut<C, HEAD_DIM>;
    using M = Multiplied<T, C>;
    unsigned query[Cut::STEPS][ROW_TILES][2];
    float max[ROW_TILES], sum[ROW_TILES], out[ROW_TILES][Cut::V_LOADS][Cut::V_EACH / 2][4];
    int row_limit[ROW_TILES];                                  // keys that row g sees
    float score_scale[ROW_TILES], score_start[ROW_TILES];  // of row g: what scores are multiplied by, and what they begin with

    __device__ __forceinline__ void begin(const T* q, const Sequence& sequence, int first_row, int length, const Problem& p) {
        const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; ++tile) {
            const int row = min(first_row + 8 * tile + g, p.rows() - 1);  // rows that are not there are copies of the last one
            max[tile] = NOTHING_SEEN;
            sum[tile] = 0.0f;
            row_limit[tile] = p.visible(row, length);
            score_scale[tile] = p.scale;
            score_start[tile] = 0.0f;
            const T* from = p.query(q, sequence.batch, sequence.head, row);
#pragma unroll
            for (int s = 0; s < Cut::STEPS; ++s) {
                constexpr int STEPS_A_LOAD = Cut::K_WORDS / Cut::STEP_WORDS;
                const int at = (t + 4 * (s / STEPS_A_LOAD)) * Cut::K_EACH + 4 * (s % STEPS_A_LOAD);
                const uint2 words = *reinterpret_cast<const uint2*>(from + at);
                query[s][tile][0] = words.x;
                query[s][tile][1] = words.y;
            }
            if constexpr (QUANTISED) make_halves(tile);
#pragma unroll
            for (int i = 0; i < Cut::V_LOADS * Cut::V_EACH / 2; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) out[tile][i / (Cut::V_EACH / 2)][i % (Cut::V_EACH / 2)][j] = 0.0f;
        }
    }

    __device__ __forceinline__ void make_halves(int tile) {
        float largest = 0.0f, sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 2 * Cut::STEPS; ++i) {
            const float2 both = floats_of<T>(query[i / 2][tile][i % 2]);
            largest = fmaxf(largest, fmaxf(fabsf(both.x), fabsf(both.y)));
        }
        largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 2));
        const int exponent = __float_as_int(fminf(fmaxf(largest, 0x1p-126f), 0x1p126f)) >> 23;  // of the largest: 2^(exponent - 127)
        const float inverse = __int_as_float((254 - exponent) << 23);
#pragma unroll
        for (int i = 0; i < 2 * Cut::STEPS; ++i) {
            unsigned& word = query[i / 2][tile][i % 2];
            const float2 both = floats_of<T>(word);
            word = pack_f16x2(both.x * inverse, both.y * inverse);
            sum += sum_of_pair<__half>(word);
        }
        sum += __shfl_xor_sync(FULL_WARP, sum, 1);
        sum += __shfl_xor_sync(FULL_WARP, sum, 2);
        score_scale[tile] *= __int_as_float(exponent << 23);
        score_start[tile] = -KEY_BIAS<C> * sum;
    }

    // Scores of 16 keys: of row g (tile 0) in scores[i][0] and [1] those of the keys 8 * i + 2 * t and the next, of row g + 8 in [2] and [3].
    __device__ __forceinline__ void multiply(float (&scores)[2][4], const Keys<C, HEAD_DIM>& keys) const {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) scores[i][j] = j / 2 < ROW_TILES ? score_start[j / 2 % ROW_TILES] : 0.0f;
#pragma unroll
        for (int s = 0; s < Cut::STEPS; ++s) {
            const unsigned a[4] = {query[s][0][0], ROW_TILES == 2 ? query[s][ROW_TILES - 1][0] : 0u, query[s][0][1],
                                   ROW_TILES == 2 ? query[s][ROW_TILES - 1][1] : 0u};
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                unsigned b[2];
                keys.operand(b, i, s);
                mma_m16n8k16<M>(scores[i], a, b, scores[i]);
            }
        }
    }

    // Scores become weights, in the operand that the second product takes. Those of a quantised cache are multiplied by the values' scales, and the
    // maximum is that of scores plus log2 of them: so no weight is too large for a half, whatever the scales are.
    __device__ __forceinline__ void weigh(unsigned (&weights)[ROW_TILES][2], float (&scores)[2][4], float scale, int token, bool all_seen) {
        const int t = lane_id() % 4;
        float k_scale[4], v_scale[4], more[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if constexpr (QUANTISED) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int of = 8 * (i / 2) + 2 * t + i % 2;
                k_scale[i] = __shfl_sync(FULL_WARP, scale, of);
                v_scale[i] = __shfl_sync(FULL_WARP, scale, CHUNK + of);
                more[i] = fmaxf(log2_approx(fabsf(v_scale[i])), SMALLEST_LOG2);
            }
        }
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; ++tile) {
            float largest = -CUDART_INF_F;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float& score = scores[i / 2][2 * tile + i % 2];
                score *= QUANTISED ? score_scale[tile] * k_scale[i] : score_scale[tile];
                if (!all_seen && token + 8 * (i / 2) + 2 * t + i % 2 >= row_limit[tile]) score = -CUDART_INF_F;
                largest = fmaxf(largest, score + more[i]);
            }
            largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 2));
            if (__any_sync(FULL_WARP, largest > max[tile] + RESCALE_ABOVE)) rescale(tile, fmaxf(max[tile], largest));
            float p[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                p[i] = exp2_approx(scores[i / 2][2 * tile + i % 2] - max[tile]);
                if constexpr (QUANTISED) {
                    sum[tile] += p[i];
                    p[i] *= v_scale[i];
                }
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                weights[tile][i] = pack_pair<M>(p[2 * i], p[2 * i + 1]);
                if constexpr (!QUANTISED) sum[tile] += sum_of_pair<T>(weights[tile][i]);  // as rounded: where one weight counts, its error cancels
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

    __device__ __forceinline__ void add(const unsigned (&weights)[ROW_TILES][2], const Values<C, HEAD_DIM>& values) {
#pragma unroll
        for (int word = 0; word < Cut::V_WORDS / 2; ++word)
#pragma unroll
            for (int j = 0; j < Cut::V_LOADS; ++j) {
                unsigned a[Cut::PER_WORD][4];
                values.operands(a, j, word);
#pragma unroll
                for (int e = 0; e < Cut::PER_WORD; ++e)
#pragma unroll
                    for (int tile = 0; tile < ROW_TILES; ++tile) {
                        float(&sum)[4] = out[tile][j][word * Cut::PER_WORD + e];
                        mma_m16n8k16<M>(sum, a[e], weights[tile], sum);
                    }
            }
    }

    // The tokens `token` to `token` + 15, and those every `stride` further on, before `end`. The first ones are in keys and values.
    __device__ __forceinline__ void walk(Keys<C, HEAD_DIM>& keys, Values<C, HEAD_DIM>& values, const C* k, const C* v, const float* k_scale,
                                         const float* v_scale, const Sequence& sequence, int length, int token, int stride, int end, const Problem& p) {
        Place place = token + stride < end ? Place(sequence, token + stride) : Place(), next_place;
        const auto step = [&] {
            const int next = token + stride;
            float scores[2][4];
            unsigned weights[ROW_TILES][2];
            multiply(scores, keys);
            const float scale = keys.scale;
            if (next < end) keys.load(k, k_scale, v_scale, sequence, place, min(CHUNK, length - next), p);
            if (next + stride < end) next_place = Place(sequence, next + stride);
            weigh(weights, scores, scale, token, token + CHUNK <= length - p.queries + 1);
            add(weights, values);
        };
        step();
        for (token += stride; token < end; token += stride) {
            values.load(v, sequence, place, min(CHUNK, length - token), p);
            place = next_place;
            step();
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
