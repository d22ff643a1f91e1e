// The parts of v4 (v4_split.cu): tiles of float32 numbers as halves, what lies where in shared memory, and what a warp does with its rows.
#pragma once
#include "halves.cuh"
#include "tensor_cores.cuh"

constexpr float WHOLE = 0x1p14f;  // what a probability of 1 is as a half

// ROWS rows in halves, as they lie in memory and in shared memory: the high ones, the low ones, each as Rows has them, and then their scale.
template <int HEAD_DIM, int ROWS>
struct SplitTile {
    static constexpr int LOW = ROWS * 2 * HEAD_DIM, SCALE = 2 * LOW, BYTES = SCALE + 16;

    // Everything but the scale, which has a place of its own. THREADS threads call.
    template <int THREADS>
    __device__ __forceinline__ static void copy(char* target, float* scale, const char* tile, int thread) {
        static_assert(SCALE % (16 * THREADS) == 0, "every thread copies as much");
#pragma unroll
        for (int at = 0; at < SCALE; at += 16 * THREADS) cp_async_l2(target + at + 16 * thread, tile + at + 16 * thread);
        if (thread == 0) cp_async_l2(scale, tile + SCALE);
    }
};

template <class Tiling>
struct SplitLayout {
    using Keys = SplitTile<Tiling::HEAD_DIM, Tiling::KEYS>;
    using Queries = SplitTile<Tiling::HEAD_DIM, Tiling::QUERIES>;
    static constexpr int DS_LOW = Tiling::PAIR_KEYS * Tiling::QUERIES * 2, DS_BYTES = Tiling::PAIRS * 2 * DS_LOW;
    char* base;

    __device__ char* keys() const { return base; }
    __device__ char* values() const { return base + Keys::SCALE; }
    __device__ char* queries(int stage) const { return base + 2 * Keys::SCALE + stage * Queries::SCALE; }
    __device__ char* grads(int stage) const { return queries(2 + stage); }
    // A pair's P in float32, and after it, in the same place, its ds in halves.
    __device__ char* ds(int buffer) const { return queries(4) + buffer * DS_BYTES; }
    __device__ char* ds(int buffer, int pair) const { return ds(buffer) + pair * 2 * DS_LOW; }
    __device__ float* lse(int stage) const { return reinterpret_cast<float*>(ds(2)) + stage * Tiling::QUERIES; }
    __device__ float* delta(int stage) const { return lse(2 + stage); }
    __device__ float* query_scale(int stage) const { return lse(4) + 4 * stage; }
    __device__ float* grad_scale(int stage) const { return query_scale(2 + stage); }
    __device__ float* key_scale() const { return query_scale(4); }
    __device__ float* value_scale() const { return query_scale(5); }
    __device__ float* ds_scales(int buffer) const { return query_scale(6) + buffer * Tiling::PAIRS; }
};

// Two numbers below 2^16 as two halves each. Infinity becomes NaN.
__device__ __forceinline__ void split_finite(float x0, float x1, unsigned& high, unsigned& low) {
    high = pack_f16x2(x0, x1);
    const float2 nearest = __half22float2(*reinterpret_cast<const __half2*>(&high));
    low = pack_f16x2(x0 - nearest.x, x1 - nearest.y);
}

// One warp's part, as in v2, but every product is three, the small ones first, and no sum of the tensor cores, which cut off what does not
// fit, is longer than a tile: finished ones are added in float32.
template <class Tiling>
struct SplitWarp : Warp<__half, Tiling> {
    using Base = Warp<__half, Tiling>;
    using typename Base::QueryRow;
    using typename Base::Row;
    using typename Base::Scores;
    using typename Base::Weights;
    using Memory = SplitLayout<Tiling>;
    using Base::sum;
    static constexpr int HEAD_DIM = Tiling::HEAD_DIM, ROW_TILES = Tiling::ROW_TILES, QUERIES = Tiling::QUERIES;
    static constexpr int STEPS = Base::STEPS, CHUNKS = Base::CHUNKS;

    struct Split { Weights high, low; };

    // d += a b for the left and right 8 columns of b, as ldmatrix gives 16 of them.
    __device__ __forceinline__ static void multiply_pair(float (&left)[4], float (&right)[4], const unsigned (&a)[4], const unsigned (&b)[4]) {
        const unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
        mma_m16n8k16<__half>(left, a, first, left);
        mma_m16n8k16<__half>(right, a, second, right);
    }

    // scores = own rows^T, keys x queries, but for both scales. Small products have sums of their own: less is cut off.
    __device__ __forceinline__ void multiply(Scores& scores, const char* own, const char* rows) {
        const int own_lane = Base::by_columns(), lane = Base::template by_rows<Row>();
        Scores small;
#pragma unroll
        for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
            for (int n = 0; n < QUERIES / 8; ++n)
#pragma unroll
                for (int j = 0; j < 4; ++j) scores[i][n][j] = small[i][n][j] = 0.0f;
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            unsigned own_high[ROW_TILES][4], own_low[ROW_TILES][4];
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i) {
                ldmatrix(own_high[i], own + Row::block(own_lane, i, step));
                ldmatrix(own_low[i], own + Memory::Keys::LOW + Row::block(own_lane, i, step));
            }
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                unsigned high[4], low[4];
                ldmatrix(high, rows + Row::block(lane, chunk, step));
                ldmatrix(low, rows + Memory::Queries::LOW + Row::block(lane, chunk, step));
#pragma unroll
                for (int i = 0; i < ROW_TILES; ++i) {
                    multiply_pair(small[i][2 * chunk], small[i][2 * chunk + 1], own_low[i], high);
                    multiply_pair(small[i][2 * chunk], small[i][2 * chunk + 1], own_high[i], low);
                    multiply_pair(scores[i][2 * chunk], scores[i][2 * chunk + 1], own_high[i], high);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
            for (int n = 0; n < QUERIES / 8; ++n)
#pragma unroll
                for (int j = 0; j < 4; ++j) scores[i][n][j] += small[i][n][j];
    }

    // sum += weights rows * factor: of P and grad, or of ds and q.
    __device__ __forceinline__ void accumulate(const Split& weights, const char* rows, float factor) {
        const int lane = Base::by_columns();
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            float tile[ROW_TILES][2][4] = {};
            unsigned high[CHUNKS][4];
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                unsigned low[4];
                ldmatrix_trans(high[chunk], rows + Row::block(lane, chunk, step));
                ldmatrix_trans(low, rows + Memory::Queries::LOW + Row::block(lane, chunk, step));
#pragma unroll
                for (int i = 0; i < ROW_TILES; ++i) {
                    multiply_pair(tile[i][0], tile[i][1], weights.low[chunk][i], high[chunk]);
                    multiply_pair(tile[i][0], tile[i][1], weights.high[chunk][i], low);
                }
            }
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
                for (int i = 0; i < ROW_TILES; ++i) multiply_pair(tile[i][0], tile[i][1], weights.high[chunk][i], high[chunk]);
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    float& own = sum[i][2 * step + j / 4][j % 4];
                    own = fmaf(tile[i][j / 4][j % 4], factor, own);
                }
        }
    }

    // P in the place of the scores, which `scale` brings to units of log 2.
    template <int MASK>
    __device__ __forceinline__ void exponentiate(Scores& scores, const float* lse, bool hides, const Window& window, const Mask<MASK, float>& mask,
                                                 float scale, int first_query, int first_key) {
        const int pair_column = Base::pair_column();
        Base::hide(scores, scale, hides, window, mask, first_query, first_key, pair_column);
#pragma unroll
        for (int n = 0; n < QUERIES / 8; ++n) {
            const float2 row_lse = *reinterpret_cast<const float2*>(lse + 8 * n + pair_column);
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) scores[i][n][j] = exp2_approx(fmaf(scores[i][n][j], scale, j % 2 ? -row_lse.y : -row_lse.x));
        }
    }

    __device__ __forceinline__ void hand_over(float4* place, const Scores& p) const {
#pragma unroll
        for (int n = 0; n < ROW_TILES * QUERIES / 8; ++n) {
            const float* four = p[n % ROW_TILES][n / ROW_TILES];
            place[32 * n + lane_id()] = make_float4(four[0], four[1], four[2], four[3]);
        }
    }

    // Numbers times factor, which brings them below 2^16, as the left operand of a product.
    __device__ __forceinline__ static void as_weights(Split& weights, const Scores& numbers, float factor) {
#pragma unroll
        for (int n = 0; n < QUERIES / 8; ++n)
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    split_finite(numbers[i][n][2 * half] * factor, numbers[i][n][2 * half + 1] * factor, weights.high[n / 2][i][n % 2 * 2 + half],
                                 weights.low[n / 2][i][n % 2 * 2 + half]);
    }

    // ds = P * (dp - delta) in halves, for its own product and, transposed, where P was, for dq's. Returns their scale.
    __device__ __forceinline__ float differentiate(Split& weights, Scores& dp, float dp_scale, const float* delta, char* ds) const {
        const int group = Base::group(), pair_column = Base::pair_column();
        const float4* p = reinterpret_cast<const float4*>(ds);
        float largest = 0.0f;
#pragma unroll
        for (int n = 0; n < QUERIES / 8; ++n) {
            const float2 row_delta = *reinterpret_cast<const float2*>(delta + 8 * n + pair_column);
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i) {
                const float4 four = p[32 * (n * ROW_TILES + i) + lane_id()];
                const float own[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    float& one = dp[i][n][j];
                    one = own[j] * fmaf(one, dp_scale, j % 2 ? -row_delta.y : -row_delta.x);
                    if (fabsf(one) < CUDART_INF_F) largest = fmaxf(largest, fabsf(one));
                }
            }
        }
        const float scale = power_of_two_below(__uint_as_float(__reduce_max_sync(FULL_WARP, __float_as_uint(largest))));
        as_weights(weights, dp, reciprocal(scale));
        __syncwarp();  // all have read P
#pragma unroll
        for (int n = 0; n < CHUNKS * ROW_TILES; ++n) {
            const int chunk = n / ROW_TILES, i = n % ROW_TILES;
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                char* place = ds + QueryRow::at(16 * i + 8 * (part % 2) + group, 2 * chunk + part / 2) + pair_column * 2;
                *reinterpret_cast<unsigned*>(place) = weights.high[chunk][i][part];
                *reinterpret_cast<unsigned*>(place + Memory::DS_LOW) = weights.low[chunk][i][part];
            }
        }
        return scale;
    }

    // This warp's part of dq = ds k, added to the sums in memory, where it lies as the lanes hold it.
    template <bool DETERMINISTIC>
    __device__ __forceinline__ void add_dq(float4* sums, int* turn, int before, const Memory& memory, int buffer) const {
        constexpr int COLUMNS = Tiling::DQ_COLUMNS, ACROSS = HEAD_DIM / COLUMNS;
        const int own_warp = opaque(warp_id()), down = own_warp / ACROSS * 2, right = own_warp % ACROSS * (COLUMNS / 16);
        const int ds_lane = Base::template by_rows<QueryRow>(), lane = Base::by_columns();
        float dq[2][COLUMNS / 8][4] = {};
#pragma unroll 2
        for (int pair = 0; pair < Tiling::PAIRS; ++pair) {
            float of_pair[2][COLUMNS / 8][4] = {};
#pragma unroll
            for (int step = 0; step < ROW_TILES; ++step) {
                unsigned ds_high[2][4], ds_low[2][4];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const char* ds = memory.ds(buffer, pair) + QueryRow::block(ds_lane, step, down + i);
                    ldmatrix_trans(ds_high[i], ds);
                    ldmatrix_trans(ds_low[i], ds + Memory::DS_LOW);
                }
#pragma unroll
                for (int column = 0; column < COLUMNS / 16; ++column) {
                    unsigned high[4], low[4];
                    const char* keys = memory.keys() + Row::block(lane, pair * ROW_TILES + step, right + column);
                    ldmatrix_trans(high, keys);
                    ldmatrix_trans(low, keys + Memory::Keys::LOW);
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        multiply_pair(of_pair[i][2 * column], of_pair[i][2 * column + 1], ds_low[i], high);
                        multiply_pair(of_pair[i][2 * column], of_pair[i][2 * column + 1], ds_high[i], low);
                        multiply_pair(of_pair[i][2 * column], of_pair[i][2 * column + 1], ds_high[i], high);
                    }
                }
            }
            const float factor = memory.ds_scales(buffer)[pair] * *memory.key_scale();
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < COLUMNS / 2; ++j) dq[i][j / 4][j % 4] = fmaf(of_pair[i][j / 4][j % 4], factor, dq[i][j / 4][j % 4]);
        }
        Base::template add_sums<DETERMINISTIC>(sums, turn, before, dq);
    }
};
