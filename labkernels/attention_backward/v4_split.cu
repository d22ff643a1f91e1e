// Attention backward, v4: float32 from halves. v2 on tiles in which each float32 number is scale * (high + low), two halves.
//   Idea      v7 of attention for all five products: each is high high + high low + low high, three of the tensor cores', and errs as float32
//             does. q, k, v and grad are split beforehand, a scale for each tile; P, which is at most 1, and ds, whose largest number in a
//             warp's tile gives it a scale, in registers. P goes to the other warp of the pair in float32, and in its place comes ds in
//             halves, of the same size. Tensor cores cut off what does not fit into their sums: so each tile's begin anew, and the finished
//             ones are added to float32 registers by an FMA, which has the tile's scales for nothing.
//   Predicts  A third of v2's speed in bf16, 300 TFLOP/s: 100, where FMAs, of which PyTorch's kernel is made, reach 36. At head_dim 128 and
//             S = 2048, 32 heads: 172 GFLOP in 1.7 ms, and 340 MB for splitting and delta in 0.1: 1.8 ms; causal a little over half. Each
//             fragment read serves more products than in v2, so shared memory is busy for 0.8 of the tensor cores' time. Tiles of 128 keys
//             and 32 queries take 225 KB: one block of eight warps a multiprocessor, and of the sums of dk and dv 12 a thread spill.
//   Measured  data/measured/h200/attention_backward.csv, the same: 1.64 ms, 104 TFLOP/s (PyTorch's 4.72 ms, v1 32.1 ms); at S = 512 0.154 ms.
//             In a profile the products took 1.51 ms, a fifth faster than a third of v2's speed, since a fragment serves more of them, and
//             all else 0.13. Causal 1.15 ms (PyTorch's 2.81 ms), 0.7 of it and not half: blocks begin head after head, and the last head's
//             longest is at work when all others are through. While it was made: errors at S = 4096 of 1.3e-6, PyTorch's 1.0e-6.
//   Wastes    As v2 does; that order (a trial that began the longest blocks of several heads first took 0.95 ms, causal); and at S = 512 splitting
//             and sums of dq are, by the same count, a third of the time. mma.sync has 0.6 of wgmma's speed, which would read q, k, v and
//             grad itself; but in v3 sums of a whole and of a tile do not fit side by side in registers.
//
// Infinity times low, which may be 0, is NaN: where v1 gives infinity, this gives infinity or NaN.
#include "cp_async.cuh"
#include "named_barrier.cuh"
#include "split.cuh"
#include "walk.cuh"

struct Problem {
    Strides dk, dv;
    MaskStrides mask;
    int heads, group;     // `group` heads of q share one of k and v
    int seq_len, kv_len;  // of the longest sequence, where they are packed
    int head_dim, row_tiles, key_tiles, window_left, window_right;
    float scale;          // in units of log 2: LOG2_OF_E is in it
};

// Tiles of ROWS rows as SplitTile has them, zeros past the last row and from column `head_dim` on: of `first` and of
// `second`. Rows lie on 16 bytes. Launch (tiles, heads of all batches from first_batch on, 2) blocks.
template <int HEAD_DIM, int ROWS>
__global__ void __launch_bounds__(256)
    attention_backward_halves(const float* first, const float* second, char* first_tiles, char* second_tiles, Strides first_strides,
                              Strides second_strides, const int* cu_seqlens, int heads, int length, int head_dim, int row_tiles,
                              int first_batch) {
    using Tile = SplitTile<HEAD_DIM, ROWS>;
    constexpr int UNITS = HEAD_DIM / 8, EACH = ROWS * UNITS / 256;  // of 8 elements: in a row, and for a thread
    const int batch = blockIdx.y / heads + first_batch, head = blockIdx.y % heads;
    const bool is_first = blockIdx.z == 0;
    const Bounds bounds = bounds_of(cu_seqlens, nullptr, batch, length, 0);
    const int first_row = blockIdx.x * ROWS, rows = bounds.seq_len - first_row;
    if (rows <= 0) return;
    const RowTiles place{cu_seqlens ? bounds.first_query / ROWS + batch : 0, row_tiles, cu_seqlens ? 0 : batch * heads};
    const Strides strides = is_first ? first_strides : second_strides;
    const float* x = head_matrix(is_first ? first : second, strides, cu_seqlens ? 0 : batch, head) + (bounds.first_query + first_row) * strides.seq;
    char* tile = (is_first ? first_tiles : second_tiles) + place.index(head, blockIdx.x) * Tile::BYTES;

    float kept[EACH][8], largest = 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int unit = i * 256 + threadIdx.x, row = unit / UNITS, column = unit % UNITS * 8;
        load_unit<4>(x + (row < rows ? row * strides.seq + column : 0), row < rows ? head_dim - column : 0, kept[i]);
#pragma unroll
        for (int j = 0; j < 8; ++j)
            if (fabsf(kept[i][j]) < CUDART_INF_F) largest = fmaxf(largest, fabsf(kept[i][j]));
    }
    __shared__ float of_warp[8];
    largest = warp_max(largest);
    if (lane_id() == 0) of_warp[warp_id()] = largest;
    __syncthreads();
    for (int i = 0; i < 8; ++i) largest = fmaxf(largest, of_warp[i]);
    const float scale = power_of_two_below(largest), factor = reciprocal(scale);
    if (threadIdx.x == 0) *reinterpret_cast<float4*>(tile + Tile::SCALE) = make_float4(scale, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int unit = i * 256 + threadIdx.x;
        char* high = tile + Rows<HEAD_DIM>::at(unit / UNITS, unit % UNITS);
        store_unit(reinterpret_cast<__half*>(high), reinterpret_cast<__half*>(high + Tile::LOW), kept[i], factor);
    }
}

// As in v2. q, grad, k, v: tiles, as attention_backward_halves leaves them.
template <class Tiling, int MASK, bool DETERMINISTIC>
__global__ void __launch_bounds__(Tiling::THREADS, Tiling::BLOCKS)
    attention_backward_split(const char* q, const char* grad, const char* k, const char* v, const float* lse, const float* delta, float* sums,
                             int* turns, float* dk, float* dv, const void* mask_values, const int* cu_seqlens_q, const int* cu_seqlens_k, Problem problem,
                             int first_batch) {
    constexpr int HEAD_DIM = Tiling::HEAD_DIM, KEYS = Tiling::KEYS, QUERIES = Tiling::QUERIES, THREADS = Tiling::THREADS;
    constexpr int PAIR_BYTES = Tiling::PAIR_KEYS * 2 * HEAD_DIM;
    using OwnWarp = SplitWarp<Tiling>;
    using Memory = SplitLayout<Tiling>;
    extern __shared__ __align__(128) char shared_bytes[];
    const Memory memory{shared_bytes};
    __shared__ Walk block;
    if (!block.begin<QUERIES, KEYS, DETERMINISTIC>(cu_seqlens_q, cu_seqlens_k, problem, first_batch)) return;

    const auto copy_tile = [&](int step) {
        const Place at = block.places[step % 4];
        const int stage = step % 2, own = opaque(threadIdx.x);
        const long long tile = block.rows.index(at.head, at.tile);
        Memory::Queries::template copy<THREADS>(memory.queries(stage), memory.query_scale(stage), q + tile * Memory::Queries::BYTES, own);
        Memory::Queries::template copy<THREADS>(memory.grads(stage), memory.grad_scale(stage), grad + tile * Memory::Queries::BYTES, own);
        const bool of_delta = own >= QUERIES / 4;
        const int value = own % (QUERIES / 4) * 4;
        const float* values = (of_delta ? delta : lse) + tile * QUERIES;
        if (own < QUERIES / 2) cp_async_l2((of_delta ? memory.delta(stage) : memory.lse(stage)) + value, values + value);
    };
    {
        const RowTiles rows{cu_seqlens_k ? block.bounds.first_key / KEYS + block.batch : 0, problem.key_tiles,
                            cu_seqlens_k ? 0 : block.batch * (problem.heads / problem.group)};
        const long long tile = rows.index(block.kv_head, block.first_key / KEYS) * Memory::Keys::BYTES;
        Memory::Keys::template copy<THREADS>(memory.keys(), memory.key_scale(), k + tile, threadIdx.x);
        Memory::Keys::template copy<THREADS>(memory.values(), memory.value_scale(), v + tile, threadIdx.x);
    }
    if (block.steps > 0) copy_tile(0);
    cp_async_commit();

    // The warps of a pair are PAIRS apart: with four pairs they share one of the four schedulers of a multiprocessor.
    const auto pair = [] { return opaque(warp_id()) % Tiling::PAIRS; };
    OwnWarp warp;
    typename OwnWarp::Scores scores;
    typename OwnWarp::Split weights;
    const auto add_dq = [&](int step) {
        const Place last = block.places[step % 4];
        const long long part = block.rows.index(last.head, last.tile) * Tiling::WARPS + opaque(warp_id());
        const int before = DETERMINISTIC ? block.before<QUERIES, KEYS>(problem, last.tile) : 0;
        float4* own = reinterpret_cast<float4*>(sums) + part * Tiling::DQ_FRAGMENTS * 32;
        warp.template add_dq<DETERMINISTIC>(own, turns + part, before, memory, step % 2);
    };
    for (int step = 0; step < block.steps; ++step) {
        const int stage = step % 2;
        block.advance(step, copy_tile);
        char* own_ds = memory.ds(stage, pair());
        if (warp_id() < Tiling::PAIRS) {
            warp.multiply(scores, memory.keys() + pair() * PAIR_BYTES, memory.queries(stage));
            const Place now = block.places[step % 4];
            const int first_query = now.tile * QUERIES;
            const bool hides = block.window(problem).template hides<QUERIES, KEYS>(first_query, block.first_key);
            const Mask<MASK, float> mask(mask_values, problem.mask, block.batch, now.head);
            const float scale = *memory.key_scale() * *memory.query_scale(stage) * problem.scale;
            warp.template exponentiate<MASK>(scores, memory.lse(stage), hides, block.window(problem), mask, scale, first_query,
                                             block.first_key + pair() * Tiling::PAIR_KEYS);
            warp.hand_over(reinterpret_cast<float4*>(own_ds), scores);
            named_barrier_arrive(1 + pair(), 64);
            if (step > 0) add_dq(step - 1);
            OwnWarp::as_weights(weights, scores, WHOLE);
            warp.accumulate(weights, memory.grads(stage), *memory.grad_scale(stage) * (1.0f / WHOLE));
        } else {
            if (step > 0) add_dq(step - 1);
            warp.multiply(scores, memory.values() + pair() * PAIR_BYTES, memory.grads(stage));
            named_barrier_sync(1 + pair(), 64);
            const float dp_scale = *memory.value_scale() * *memory.grad_scale(stage);
            const float ds_scale = warp.differentiate(weights, scores, dp_scale, memory.delta(stage), own_ds);
            if (lane_id() == 0) memory.ds_scales(stage)[pair()] = ds_scale;
            warp.accumulate(weights, memory.queries(stage), ds_scale * *memory.query_scale(stage));
        }
    }
    cp_async_wait<0>();
    __syncthreads();
    if (block.steps > 0) add_dq(block.steps - 1);

    const bool has_scores = warp_id() < Tiling::PAIRS;
    const Strides strides = has_scores ? problem.dv : problem.dk;
    const int batch = cu_seqlens_k ? 0 : block.batch, own_key = block.first_key + pair() * Tiling::PAIR_KEYS + warp.group();
    float* target = head_matrix(has_scores ? dv : dk, strides, batch, block.kv_head) + warp.pair_column();
    target += (block.bounds.first_key + own_key) * strides.seq;
    const float factor = has_scores ? 1.0f : problem.scale * LN_OF_2;
#pragma unroll
    for (int row = 0; row < 2 * Tiling::ROW_TILES; ++row) {
        if (own_key + 8 * row >= block.bounds.kv_len) continue;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; ++n) {
            const float* two = warp.sum[row / 2][n] + row % 2 * 2;
            if (8 * n >= problem.head_dim) continue;
            *reinterpret_cast<float2*>(target + 8 * row * strides.seq + 8 * n) = make_float2(two[0] * factor, two[1] * factor);
        }
    }
}

// dq from its sums, which lie as the lanes of attention_backward_split hold them. The grid is as of the tiles of queries.
template <class Tiling>
__global__ void __launch_bounds__(Tiling::THREADS)
    attention_backward_split_rows(const float* sums, float* dq, Strides strides, const int* cu_seqlens_q, int heads, int seq_len, int head_dim,
                                  int row_tiles, float scale, int first_batch) {
    constexpr int QUERIES = Tiling::QUERIES, ACROSS = Tiling::HEAD_DIM / Tiling::DQ_COLUMNS;
    const int batch = blockIdx.y / heads + first_batch, head = blockIdx.y % heads;
    const Bounds bounds = bounds_of(cu_seqlens_q, nullptr, batch, seq_len, 0);
    const RowTiles rows{cu_seqlens_q ? bounds.first_query / QUERIES + batch : 0, row_tiles, cu_seqlens_q ? 0 : batch * heads};
    const int first_row = blockIdx.x * QUERIES + warp_id() / ACROSS * 32 + lane_id() / 4, first_column = warp_id() % ACROSS * Tiling::DQ_COLUMNS;
    float* target = head_matrix(dq, strides, cu_seqlens_q ? 0 : batch, head) + bounds.first_query * strides.seq + lane_id() % 4 * 2;
    const long long part = rows.index(head, blockIdx.x) * Tiling::WARPS + warp_id();
    const float4* own = reinterpret_cast<const float4*>(sums) + part * Tiling::DQ_FRAGMENTS * 32 + lane_id();
#pragma unroll
    for (int n = 0; n < Tiling::DQ_FRAGMENTS; ++n) {
        const int row = first_row + n % 2 * 16, column = first_column + n / 2 * 8;
        if (row >= bounds.seq_len || column >= head_dim) continue;
        const float4 four = own[32 * n];
        float* upper = target + row * strides.seq + column;
        *reinterpret_cast<float2*>(upper) = make_float2(four.x * scale, four.y * scale);
        if (row + 8 < bounds.seq_len) *reinterpret_cast<float2*>(upper + 8 * strides.seq) = make_float2(four.z * scale, four.w * scale);
    }
}
