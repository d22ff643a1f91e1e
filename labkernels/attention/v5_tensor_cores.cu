// Attention, v5: tensor cores. A warp owns 16 or 32 queries from q k^T to the output; both products are mma.sync on fragments in registers.
//   Idea      Where a lane holds a score after q k^T is where the second product wants its weight: the accumulator of one product is the
//             left operand of the next, so weights never leave the registers. Tiles of keys come by cp.async while the last are used.
//   Predicts  Tensor cores multiply 8 to 14 times as fast as FMA units (v3), if three others keep pace with them.
//             Shared memory: four matrices by ldmatrix take 4 cycles, and a multiprocessor multiplies with four of its warps at a time. So each
//             fragment of K and V must serve 32 queries; with 16 a warp, shared memory would be the limit.
//             The exponential, 16 a cycle: a tile of 64 keys needs half as long for its exponentials as for its multiplications at
//             head_dim 64, a quarter at 128. So those of some keys run while the weights of others are multiplied, within each warp.
//             Everything else a tile needs: 3 instructions for each mma.sync, of which the copies run among the multiplications, too.
//   Measured  data/measured/h200/attention.csv, bf16, 16384 tokens of 2048, S = 16384: 395 TFLOP/s at head_dim 128, FlashAttention-2 354 TFLOP/s;
//             causal 348 and 325. At head_dim 64 353 and 308, causal 346 and 300. While it was made: with 16 queries a warp 0.9 of it at
//             head_dim 128, tiles of 48 keys a little faster than those of 32, and with spills.
//   Wastes    All warps of a block wait for each other once a tile, and the maximum of a tile waits for all of its scores. Tiles that the
//             causal mask hides from a warp, but not from the last warp of its block, are computed. On Hopper, wgmma is faster.
//
// The output is rescaled only if some score of the warp's 32 queries exceeds the number that weights are relative to by a factor
// of 2^8: until then weights are at most 256, which costs no accuracy, for sum and output grow alike. After a few tiles that is rare.
#include <math_constants.h>

#include "approx.cuh"
#include "cp_async.cuh"
#include "ldmatrix.cuh"
#include "mma.cuh"
#include "pack.cuh"
#include "strides.cuh"
#include "swizzled_rows.cuh"
#include "visible.cuh"
#include "warp.cuh"

constexpr float NOTHING_SEEN = -3e38f;  // instead of -inf, which would make NaN of -inf - -inf
constexpr float RESCALE_ABOVE = 8.0f;   // in units of log 2

struct Problem {
    Strides q, k, v, out, lse;  // lse is (batch, heads, seq), float
    MaskStrides mask;
    int batch, heads, group;    // `group` heads of q share one of k and v
    int seq_len, kv_len;        // of the longest sequence, where they are packed
    int head_dim, window_left, window_right;
    float scale;                // in units of log 2: LOG2_OF_E is in it. Positive.
};

// How the work is split.
template <int HEAD_DIM_,   // head_dim or more; the rest is filled with zeros
          int WARPS_,      // a block
          int ROW_TILES_,  // 16 queries each, a warp
          int KEYS_,       // a tile
          int KEPT_,       // of HEAD_DIM / 16 fragments of q: in registers all the time; the others are read again for each tile
          bool AHEAD_,     // are the scores of the next tile computed under this tile's softmax?
          int BLOCKS_>     // that a multiprocessor holds
struct Tiling {
    static constexpr int HEAD_DIM = HEAD_DIM_, WARPS = WARPS_, ROW_TILES = ROW_TILES_, KEYS = KEYS_, KEPT = KEPT_, BLOCKS = BLOCKS_;
    static constexpr bool AHEAD = AHEAD_;
    static constexpr int THREADS = 32 * WARPS, WARP_QUERIES = 16 * ROW_TILES, QUERIES = WARP_QUERIES * WARPS;
};


// One warp's part: its queries' rows of the output, and of each row the base that weights are relative to and their sum.
// Lane 4 * g + t holds the rows g and g + 8 of each 16 and the columns 2 * t and 2 * t + 1 of each 8, of scores and output alike.
template <class T, class Tiling>
struct Warp {
    static constexpr int HEAD_DIM = Tiling::HEAD_DIM, ROW_TILES = Tiling::ROW_TILES, KEYS = Tiling::KEYS, KEPT = Tiling::KEPT;
    static constexpr int STEPS = HEAD_DIM / 16, CHUNKS = KEYS / 16;  // 16 columns of q and k; 16 keys
    static constexpr int SLOTS = CHUNKS * STEPS;                     // of `weigh`
    using Row = Rows<HEAD_DIM>;
    using Scores = float[ROW_TILES][KEYS / 8][4];
    using Weights = unsigned[CHUNKS][ROW_TILES][4];
    using RowPairs = float[ROW_TILES][2];

    const char* queries;  // this warp's, in shared memory
    // What the lane hands to ldmatrix for a 16 x 16 block. By rows, left half first, or by columns, upper half first: in either case the
    // registers come in the order in which mma.sync wants the operand.
    int by_columns, by_rows;
    float factor;         // from scores to units of log 2
    unsigned kept[KEPT > 0 ? KEPT : 1][ROW_TILES][4];
    float output[ROW_TILES][HEAD_DIM / 8][4];
    RowPairs minus_base, sum;  // sum: of this lane's own columns until the very end

    __device__ __forceinline__ Warp(const char* queries, float factor)
        : queries(queries), by_columns(Row::at(lane_id() % 16, lane_id() / 16)),
          by_rows(Row::at(lane_id() % 8 + lane_id() / 16 * 8, lane_id() / 8 % 2)), factor(factor), output{}, sum{} {
#pragma unroll
        for (int i = 0; i < 2 * ROW_TILES; ++i) minus_base[i / 2][i % 2] = -NOTHING_SEEN;
    }

    __device__ __forceinline__ void keep_queries() {
#pragma unroll
        for (int i = 0; i < KEPT * ROW_TILES; ++i) ldmatrix(kept[i / ROW_TILES][i % ROW_TILES], queries + Row::block(by_columns, i % ROW_TILES, i / ROW_TILES));
    }

    // scores = q k^T. `meanwhile(step)` is other work for the warp while the tensor cores are busy, step 0 to STEPS - 1.
    template <class Meanwhile>
    __device__ __forceinline__ void multiply_keys(Scores& scores, const char* keys, Meanwhile meanwhile) {
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            unsigned query[ROW_TILES][4];
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i) {
                if (step >= KEPT) ldmatrix(query[i], queries + Row::block(by_columns, i, step));
            }
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                unsigned key[4];
                ldmatrix(key, keys + Row::block(by_rows, chunk, step));
                const unsigned left[2] = {key[0], key[1]}, right[2] = {key[2], key[3]};
#pragma unroll
                for (int i = 0; i < ROW_TILES; ++i) {
                    const unsigned (&own)[4] = step < KEPT ? kept[step < KEPT ? step : 0][i] : query[i];
                    auto &score = scores[i][2 * chunk], &next = scores[i][2 * chunk + 1];
                    if (step == 0) score[0] = score[1] = score[2] = score[3] = next[0] = next[1] = next[2] = next[3] = 0.0f;
                    mma_m16n8k16<T>(score, own, left, score);
                    mma_m16n8k16<T>(next, own, right, next);
                }
            }
            meanwhile(step);
        }
    }

    // output += weights v. `meanwhile(slot)` as above, slot 0 to SLOTS - 1; the weights of 16 keys are needed from slot STEPS * chunk on.
    template <class Meanwhile>
    __device__ __forceinline__ void multiply_values(const Weights& weights, const char* values, Meanwhile meanwhile) {
#pragma unroll
        for (int slot = 0; slot < SLOTS; ++slot) {
            const int chunk = slot / STEPS, step = slot % STEPS;
            unsigned value[4];
            ldmatrix_trans(value, values + Row::block(by_columns, chunk, step));
            const unsigned left[2] = {value[0], value[1]}, right[2] = {value[2], value[3]};
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i) {
                mma_m16n8k16<T>(output[i][2 * step], weights[chunk][i], left, output[i][2 * step]);
                mma_m16n8k16<T>(output[i][2 * step + 1], weights[chunk][i], right, output[i][2 * step + 1]);
            }
            meanwhile(slot);
        }
    }

    // Part `part` of `parts` of finding each row's maximum among this lane's scores; part 0 begins it.
    __device__ __forceinline__ void find_max(RowPairs& max, const Scores& scores, int part, int parts) {
        constexpr int ROW_SCORES = ROW_TILES * 2 * (KEYS / 8);  // pairs of neighbours in a row
#pragma unroll
        for (int n = part * ROW_SCORES / parts; n < (part + 1) * ROW_SCORES / parts; ++n) {
            const int i = n % ROW_TILES, half = n / ROW_TILES % 2, pair = n / ROW_TILES / 2;
            const float larger = fmaxf(scores[i][pair][2 * half], scores[i][pair][2 * half + 1]);
            max[i][half] = pair == 0 ? larger : fmaxf(max[i][half], larger);
        }
    }

    // Part `part` of `parts` of weights = 2^(scores - base): of the keys 16 * first_chunk .. 16 * end_chunk - 1.
    __device__ __forceinline__ void exponentiate(Weights& weights, const Scores& scores, int first_chunk, int end_chunk, int part, int parts) {
        const int begin = first_chunk * ROW_TILES * 4, count = (end_chunk - first_chunk) * ROW_TILES * 4;
#pragma unroll
        for (int n = begin + part * count / parts; n < begin + (part + 1) * count / parts; ++n) {
            const int chunk = n / 4 / ROW_TILES, i = n / 4 % ROW_TILES, part_of_a = n % 4, half = part_of_a % 2;
            const float* pair = &scores[i][2 * chunk + part_of_a / 2][2 * half];
            const float low = exp2_approx(fmaf(pair[0], factor, minus_base[i][half])), high = exp2_approx(fmaf(pair[1], factor, minus_base[i][half]));
            sum[i][half] += low;
            sum[i][half] += high;
            weights[chunk][i][part_of_a] = pack_pair<T>(low, high);
        }
    }

    // A new base where a maximum has outgrown it too far. The lanes of a row need not compare their maxima until then.
    __device__ __forceinline__ void rescale(const RowPairs& max) {
        bool outgrown = false;
#pragma unroll
        for (int i = 0; i < 2 * ROW_TILES; ++i) outgrown |= fmaf(max[i / 2][i % 2], factor, minus_base[i / 2][i % 2]) > RESCALE_ABOVE;
        if (!__any_sync(FULL_WARP, outgrown)) return;
#pragma unroll
        for (int row = 0; row < 2 * ROW_TILES; ++row) {
            const int i = row / 2, half = row % 2;
            float row_max = max[i][half];
            row_max = fmaxf(row_max, __shfl_xor_sync(FULL_WARP, row_max, 1));
            row_max = fmaxf(row_max, __shfl_xor_sync(FULL_WARP, row_max, 2));
            const float minus_new = fminf(minus_base[i][half], -row_max * factor), correction = exp2_approx(minus_new - minus_base[i][half]);
            minus_base[i][half] = minus_new;
            sum[i][half] *= correction;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; ++n) output[i][n][2 * half] *= correction, output[i][n][2 * half + 1] *= correction;
        }
    }

    // Hidden scores become -inf. A mask brings the scores to units of log 2, so that `factor` must be 1 then.
    template <int MASK>
    __device__ __forceinline__ void hide(Scores& scores, const Window& window, const Mask<MASK, T>& mask, float scale, int first_query, int first_key) {
        const int lane_key = first_key + lane_id() % 4 * 2;
        const Window seen(window.seq_len, window.kv_len - lane_key, window.left, window.right);  // keys counted from the lane's first one
#pragma unroll
        for (int row = 0; row < 2 * ROW_TILES; ++row) {
            const int i = row / 2, half = row % 2, query = first_query + 16 * i + 8 * half + lane_id() / 4;
            const int first = seen.first_key(query), end = MASK == MASK_NONE || query < window.seq_len ? seen.end_key(query) : 0;
#pragma unroll
            for (int n = 0; n < KEYS / 4; ++n) {
                const int key = n / 2 * 8 + n % 2;
                float& score = scores[i][n / 2][2 * half + n % 2];
                if (key < first || key >= end) score = -CUDART_INF_F;
                else if constexpr (MASK != MASK_NONE) score = mask.apply(score * scale, query, lane_key + key);
            }
        }
    }

    // Divides by the sums, writes the logarithms of the sums to lse (may be null), and the output over the queries in shared memory.
    __device__ __forceinline__ void finish(char* staged, float* lse, int rows) {
#pragma unroll
        for (int row = 0; row < 2 * ROW_TILES; ++row) {
            const int i = row / 2, half = row % 2, query = 16 * i + 8 * half + lane_id() / 4;
            float total = sum[i][half];
            total += __shfl_xor_sync(FULL_WARP, total, 1);
            total += __shfl_xor_sync(FULL_WARP, total, 2);
            const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
            if (lse != nullptr && lane_id() % 4 == 0 && query < rows)
                lse[query] = total == 0.0f ? -CUDART_INF_F : (log2f(total) - minus_base[i][half]) / LOG2_OF_E;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; ++n)
                *reinterpret_cast<unsigned*>(staged + Row::at(query, n) + lane_id() % 4 * 4) =
                    pack_pair<T>(output[i][n][2 * half] * inverse, output[i][n][2 * half + 1] * inverse);
        }
        __syncwarp();
    }
};

// out = softmax(scale * q k^T + mask) v, and lse, if it is not null, the natural logarithm of each softmax's sum.
// cu_seqlens_q and cu_seqlens_k say, if PACKED, where each sequence begins and the last one ends. What a query sees: visible.cuh.
// Launch THREADS threads, a grid of (heads at a time, tiles of queries, times), and (QUERIES + 4 * KEYS) * HEAD_DIM * 2 bytes of shared memory.
template <class T, class Tiling, int MASK, int WIDTH, bool PACKED>
__global__ void __launch_bounds__(Tiling::THREADS, Tiling::BLOCKS)
attention_tensor_cores(const T* q, const T* k, const T* v, T* out, float* lse, const void* mask_values, const int* cu_seqlens_q,
                       const int* cu_seqlens_k, Problem problem) {
    constexpr int HEAD_DIM = Tiling::HEAD_DIM, KEYS = Tiling::KEYS, THREADS = Tiling::THREADS, WARP_QUERIES = Tiling::WARP_QUERIES;
    constexpr int ROW_BYTES = Rows<HEAD_DIM>::BYTES, TILE_BYTES = KEYS * ROW_BYTES, CHUNKS = KEYS / 16;
    using OwnWarp = Warp<T, Tiling>;

    // Blocks start in the order x, y, z: so many heads after another that their K and V stay in L2. Of these heads the last queries come
    // first: under a causal mask they have the most to do, and what is left for the end, when multiprocessors fall idle, is short.
    const int index = blockIdx.x + blockIdx.z * gridDim.x, batch = index / problem.heads, head = index % problem.heads;
    const int first_query = (gridDim.y - 1 - blockIdx.y) * Tiling::QUERIES;
    if (batch >= problem.batch) return;
    const Bounds bounds = bounds_of(PACKED ? cu_seqlens_q : nullptr, PACKED ? cu_seqlens_k : nullptr, batch, problem.seq_len, problem.kv_len);
    if (first_query >= bounds.seq_len) return;
    const int seq_len = bounds.seq_len, kv_len = bounds.kv_len, head_dim = problem.head_dim;
    const int warp_query = first_query + warp_id() * WARP_QUERIES;
    q = head_matrix(q, problem.q, batch, head) + bounds.first_query * problem.q.seq;
    k = head_matrix(k, problem.k, batch, head / problem.group) + bounds.first_key * problem.k.seq;
    v = head_matrix(v, problem.v, batch, head / problem.group) + bounds.first_key * problem.v.seq;

    // What only the end asks for: the loop has better use for registers.
    __shared__ struct { int batch, head, first_row, rows; } later;
    if (threadIdx.x == 0) later = {batch, head, bounds.first_query + first_query, seq_len - first_query};
    extern __shared__ __align__(128) char shared_bytes[];
    char* const queries = shared_bytes + warp_id() * WARP_QUERIES * ROW_BYTES;
    // Two pairs of tiles, one of which is used while the other comes: keys, then values.
    char *here = shared_bytes + Tiling::QUERIES * ROW_BYTES, *there = here + 2 * TILE_BYTES;

    const Window window(seq_len, kv_len, problem.window_left, problem.window_right);
    const Mask<MASK, T> mask(mask_values, problem.mask, batch, head);
    const Tiles tiles = window.keys<Tiling::QUERIES, KEYS>(first_query);

    Copier<T, HEAD_DIM, WARP_QUERIES, 32, WIDTH>(q, problem.q.seq, warp_query, head_dim, lane_id()).copy(queries, seq_len - warp_query);
    Copier<T, HEAD_DIM, KEYS, THREADS, WIDTH> keys(k, problem.k.seq, tiles.first * KEYS, head_dim, threadIdx.x);
    Copier<T, HEAD_DIM, KEYS, THREADS, WIDTH> values(v, problem.v.seq, tiles.first * KEYS, head_dim, threadIdx.x);

    OwnWarp warp(queries, MASK == MASK_NONE ? problem.scale : 1.0f);
    typename OwnWarp::RowPairs max;
    const auto hides = [&](int tile) {
        const Window seen(seq_len, kv_len - tile * KEYS, problem.window_left, problem.window_right);  // keys counted from the tile's first one
        return MASK != MASK_NONE || seen.template hides<WARP_QUERIES, KEYS>(min(warp_query, seq_len - 1), 0);
    };
    const auto hide = [&](typename OwnWarp::Scores& scores, int tile) {
        warp.template hide<MASK>(scores, window, mask, problem.scale, warp_query, tile * KEYS);
    };
    const auto nothing = [](int) {};

    typename OwnWarp::Scores scores;
    typename OwnWarp::Weights weights;
    if (tiles.first >= tiles.end) {
        __syncthreads();  // no query sees any key
    } else if constexpr (!Tiling::AHEAD) {
        keys.copy(here, kv_len - tiles.first * KEYS);
        values.copy(here + TILE_BYTES, kv_len - tiles.first * KEYS);
        cp_async_commit();
        for (int tile = tiles.first; tile < tiles.end; ++tile) {
            cp_async_wait<0>();
            __syncthreads();  // this tile is here, and everybody is through with the last one
            if (tile == tiles.first) warp.keep_queries();

            const int rows = tile + 1 < tiles.end ? kv_len - (tile + 1) * KEYS : 0;  // to come; of the tile past the end none
            warp.multiply_keys(scores, here, [&](int step) {
                keys.copy(there, rows, step, OwnWarp::STEPS);
                values.copy(there + TILE_BYTES, rows, step, OwnWarp::STEPS);
            });
            cp_async_commit();
            if (hides(tile)) hide(scores, tile);
            warp.find_max(max, scores, 0, 1);
            warp.rescale(max);
            warp.exponentiate(weights, scores, 0, 1, 0, 1);
            warp.multiply_values(weights, here + TILE_BYTES, [&](int slot) {
                const int next = slot / OwnWarp::STEPS + 1;
                if (next < CHUNKS) warp.exponentiate(weights, scores, next, next + 1, slot % OwnWarp::STEPS, OwnWarp::STEPS);
            });
            char* const free = here;
            here = there, there = free;
        }
    } else {
        keys.copy(there, kv_len - tiles.first * KEYS);
        cp_async_commit();
        if (tiles.first + 1 < tiles.end) keys.copy(here, kv_len - (tiles.first + 1) * KEYS);  // from now on beside the values of the tile before
        values.copy(here + TILE_BYTES, kv_len - tiles.first * KEYS);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        warp.keep_queries();

        typename OwnWarp::Scores next;
        warp.multiply_keys(scores, there, nothing);
        if (hides(tiles.first)) hide(scores, tiles.first);
        warp.find_max(max, scores, 0, 1);
        warp.rescale(max);
        for (int tile = tiles.first; tile < tiles.end - 1; ++tile) {
            cp_async_wait<0>();
            __syncthreads();  // these values and the next keys are here, and everybody is through with what lies there
            const int rows = kv_len - (tile + 1) * KEYS;
            const auto multiply = [&](bool hide_next) {
                warp.multiply_keys(next, here, [&](int step) {
                    keys.copy(there, tile + 2 < tiles.end ? rows - KEYS : 0, step, OwnWarp::STEPS);
                    values.copy(there + TILE_BYTES, rows, step, OwnWarp::STEPS);
                    warp.exponentiate(weights, scores, 0, CHUNKS, step, OwnWarp::STEPS);
                });
                cp_async_commit();
                if (hide_next) hide(next, tile + 1);
                warp.multiply_values(weights, here + TILE_BYTES, [&](int slot) { warp.find_max(max, next, slot, OwnWarp::SLOTS); });
            };
            if (hides(tile + 1)) multiply(true);
            else multiply(false);  // without a jump in between, over which the compiler would move no instruction
            warp.rescale(max);
#pragma unroll
            for (int i = 0; i < Tiling::ROW_TILES; ++i) {
#pragma unroll
                for (int j = 0; j < KEYS / 2; ++j) scores[i][j / 4][j % 4] = next[i][j / 4][j % 4];
            }
            char* const free = here;
            here = there, there = free;
        }
        cp_async_wait<0>();
        __syncthreads();
        warp.exponentiate(weights, scores, 0, CHUNKS, 0, 1);
        warp.multiply_values(weights, here + TILE_BYTES, nothing);
    }
    cp_async_wait<0>();
    __syncwarp();

    const int first_row = later.first_row + warp_id() * WARP_QUERIES, rows = later.rows - warp_id() * WARP_QUERIES;
    if (lse != nullptr) lse = head_matrix(lse, problem.lse, later.batch, later.head) + first_row * problem.lse.seq;
    warp.finish(queries, lse, rows);
    out = head_matrix(out, problem.out, later.batch, later.head) + first_row * problem.out.seq;
#pragma unroll
    for (int i = 0; i < WARP_QUERIES * HEAD_DIM / 256; ++i) {
        const int row = (lane_id() + 32 * i) / (HEAD_DIM / 8), chunk = (lane_id() + 32 * i) % (HEAD_DIM / 8);
        if (row >= rows || 8 * chunk >= head_dim) continue;
        const char* from = queries + Rows<HEAD_DIM>::at(row, chunk);
        T* to = out + row * problem.out.seq + 8 * chunk;
        if constexpr (WIDTH == 8) *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
        else for (int j = 0; j < min(8, head_dim - 8 * chunk); ++j) to[j] = reinterpret_cast<const T*>(from)[j];
    }
}
