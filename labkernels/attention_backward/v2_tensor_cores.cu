// Attention backward, v2: tensor cores. A block owns some keys and walks over the queries; two warps share 16 or 32 of the keys.
//   Idea      One warp of a pair works out the scores (transposed: keys x queries), from them the probabilities P, and sums dv += P^T grad; the
//             other one works out dp, from it ds, and sums dk += ds^T q. P goes from the one to the other in the layout that both have it
//             in, so that handing it over takes a store and a load of 16 bytes a lane, and is at once the left operand of dv's product.
//   Predicts  Shared memory feeds mma.sync: of each fragment that is read, so many multiplications must be made that it keeps pace.
//             With sums of dk and of dv in two warps a warp has registers for 32 keys at head_dim 128, and each fragment of q or grad
//             serves 32 rows. If each warp summed both, it would have room for 16, and shared memory would take 1.4 times as long.
//             One warp's exponentials run under the other one's multiplications, and dq of the tile before comes in between.
//   Measured  data/measured/h200/attention_backward.csv, bf16, 16384 tokens of 2048, S = 8192: 309 TFLOP/s at head_dim 128, FlashAttention-2's
//             302 TFLOP/s; causal 290 and 283. At head_dim 64 258 and 282, causal 247 and 255, with three blocks of two pairs a multiprocessor.
//             While it was made, with one of four pairs 209.
//   Wastes    All warps of a block wait for each other once a tile. Pairs of queries and keys that the causal mask hides, in the tiles on the
//             diagonal, are computed. The sums of dq go to memory and come back in float32. On Hopper, wgmma is faster.
#include "cp_async.cuh"
#include "named_barrier.cuh"
#include "tensor_cores.cuh"
#include "walk.cuh"

struct Problem {
    Strides q, k, v, grad, dk, dv;
    MaskStrides mask;
    int heads, group;     // `group` heads of q share one of k and v
    int seq_len, kv_len;  // of the longest sequence, where they are packed
    int head_dim, row_tiles, window_left, window_right;
    float scale;          // in units of log 2: LOG2_OF_E is in it
};

// dk and dv of KEYS keys, over all queries that see them and all heads that share them; dq is added to `sums`, which begin as zeros.
// lse and delta lie as `attention_backward_prepare` leaves them. `turns`, zeros, one for each tile of queries and warp, only if DETERMINISTIC.
// Launch (tiles of keys, heads of all batches from first_batch on) blocks.
template <class T, class Tiling, int MASK, bool DETERMINISTIC>
__global__ void __launch_bounds__(Tiling::THREADS, Tiling::BLOCKS)
    attention_backward_tensor_cores(const T* q, const T* k, const T* v, const T* grad, const float* lse, const float* delta, float* sums, int* turns,
                                    T* dk, T* dv, const void* mask_values, const int* cu_seqlens_q, const int* cu_seqlens_k, Problem problem, int first_batch) {
    constexpr int HEAD_DIM = Tiling::HEAD_DIM, KEYS = Tiling::KEYS, QUERIES = Tiling::QUERIES, THREADS = Tiling::THREADS;
    constexpr int PAIR_BYTES = Tiling::PAIR_KEYS * Layout<Tiling>::ROW_BYTES;
    using OwnWarp = Warp<T, Tiling>;
    extern __shared__ __align__(128) char shared_bytes[];
    const Layout<Tiling> memory{shared_bytes};
    __shared__ Walk block;
    if (!block.begin<QUERIES, KEYS, DETERMINISTIC>(cu_seqlens_q, cu_seqlens_k, problem, first_batch)) return;

    const auto copy_tile = [&](int step) {
        const Place at = block.places[step % 4];
        const int stage = step % 2, own = opaque(threadIdx.x), first = at.tile * QUERIES, left = block.bounds.seq_len - first;
        const T* queries = head_matrix(q, problem.q, block.batch, at.head) + block.bounds.first_query * problem.q.seq;
        const T* grads = head_matrix(grad, problem.grad, block.batch, at.head) + block.bounds.first_query * problem.grad.seq;
        Copier<T, HEAD_DIM, QUERIES, THREADS, 8>(queries, problem.q.seq, first, problem.head_dim, own).copy(memory.queries(stage), left);
        Copier<T, HEAD_DIM, QUERIES, THREADS, 8>(grads, problem.grad.seq, first, problem.head_dim, own).copy(memory.grads(stage), left);
        const bool of_delta = own >= QUERIES / 4;
        const int value = own % (QUERIES / 4) * 4;
        const float* values = (of_delta ? delta : lse) + block.rows.index(at.head, at.tile) * QUERIES;
        if (own < QUERIES / 2) cp_async_l2((of_delta ? memory.delta(stage) : memory.lse(stage)) + value, values + value);
    };
    {
        const T* keys = head_matrix(k, problem.k, block.batch, block.kv_head) + block.bounds.first_key * problem.k.seq;
        const T* values = head_matrix(v, problem.v, block.batch, block.kv_head) + block.bounds.first_key * problem.v.seq;
        Copier<T, HEAD_DIM, KEYS, THREADS, 8>(keys, problem.k.seq, block.first_key, problem.head_dim, threadIdx.x)
            .copy(memory.keys(), block.bounds.kv_len - block.first_key);
        Copier<T, HEAD_DIM, KEYS, THREADS, 8>(values, problem.v.seq, block.first_key, problem.head_dim, threadIdx.x)
            .copy(memory.values(), block.bounds.kv_len - block.first_key);
    }
    if (block.steps > 0) copy_tile(0);
    cp_async_commit();

    // The warps of a pair are PAIRS apart: with four pairs they share one of the four schedulers of a multiprocessor.
    const auto pair = [] { return opaque(warp_id()) % Tiling::PAIRS; };
    OwnWarp warp;
    typename OwnWarp::Scores scores;
    alignas(16) typename OwnWarp::Weights weights;
    const auto add_dq = [&](int step) {
        const Place last = block.places[step % 4];
        const long long part = block.rows.index(last.head, last.tile) * Tiling::WARPS + opaque(warp_id());
        const int before = DETERMINISTIC ? block.before<QUERIES, KEYS>(problem, last.tile) : 0;
        float4* own = reinterpret_cast<float4*>(sums) + part * Tiling::DQ_FRAGMENTS * 32;
        warp.template add_dq<DETERMINISTIC>(own, turns + part, before, memory.ds(step % 2), memory.keys());
    };
    for (int step = 0; step < block.steps; ++step) {
        const int stage = step % 2;
        block.advance(step, copy_tile);
        if (warp_id() < Tiling::PAIRS) {
            warp.multiply(scores, memory.keys() + pair() * PAIR_BYTES, memory.queries(stage));
            const Place now = block.places[step % 4];
            const int first_query = now.tile * QUERIES;
            const bool hides = block.window(problem).template hides<QUERIES, KEYS>(first_query, block.first_key);
            const Mask<MASK, T> mask(mask_values, problem.mask, block.batch, now.head);
            warp.template exponentiate<MASK>(weights, scores, memory.lse(stage), hides, block.window(problem), mask, problem.scale, first_query,
                                             block.first_key + pair() * Tiling::PAIR_KEYS);
            warp.hand_over(memory.p(pair()), weights);
            named_barrier_arrive(1 + pair(), 64);
            if (step > 0) add_dq(step - 1);
            warp.accumulate(weights, memory.grads(stage));
        } else {
            if (step > 0) add_dq(step - 1);
            warp.multiply(scores, memory.values() + pair() * PAIR_BYTES, memory.grads(stage));
            named_barrier_sync(1 + pair(), 64);
            warp.differentiate(weights, scores, memory.p(pair()), memory.delta(stage), memory.ds(stage) + pair() * Tiling::PAIR_KEYS * 2 * QUERIES);
            warp.accumulate(weights, memory.queries(stage));
        }
    }
    cp_async_wait<0>();
    __syncthreads();
    if (block.steps > 0) add_dq(block.steps - 1);
    __syncthreads();  // nobody reads k and v any more: their gradients leave through their places

    const bool has_scores = warp_id() < Tiling::PAIRS;
    const int own_keys = pair() * Tiling::PAIR_KEYS;
    char* staged = (has_scores ? memory.values() : memory.keys()) + pair() * PAIR_BYTES;
    const int group = warp.group(), pair_column = warp.pair_column();
    const float factor = has_scores ? 1.0f : problem.scale * LN_OF_2;
#pragma unroll
    for (int row = 0; row < 2 * Tiling::ROW_TILES; ++row) {
        const int i = row / 2, half = row % 2;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; ++n)
            *reinterpret_cast<unsigned*>(staged + Rows<HEAD_DIM>::at(16 * i + 8 * half + group, n) + pair_column * 2) =
                pack_pair<T>(warp.sum[i][n][2 * half] * factor, warp.sum[i][n][2 * half + 1] * factor);
    }
    __syncwarp();
    const Strides strides = has_scores ? problem.dv : problem.dk;
    T* target = head_matrix(has_scores ? dv : dk, strides, block.batch, block.kv_head) + (block.bounds.first_key + block.first_key + own_keys) * strides.seq;
    for (int n = lane_id(); n < Tiling::PAIR_KEYS * (HEAD_DIM / 8); n += 32) {
        const int row = n / (HEAD_DIM / 8), chunk = n % (HEAD_DIM / 8);
        if (block.first_key + own_keys + row < block.bounds.kv_len && 8 * chunk < problem.head_dim)
            *reinterpret_cast<uint4*>(target + row * strides.seq + 8 * chunk) = *reinterpret_cast<const uint4*>(staged + Rows<HEAD_DIM>::at(row, chunk));
    }
}

// dq from its sums: rows of 16-bit elements again, by way of shared memory.
template <class T, class Tiling>
__global__ void __launch_bounds__(Tiling::THREADS)
    attention_backward_rows(const float* sums, T* dq, Strides strides, const int* cu_seqlens_q, int heads, int seq_len, int head_dim, int row_tiles, float scale,
                            int first_batch) {
    constexpr int HEAD_DIM = Tiling::HEAD_DIM, QUERIES = Tiling::QUERIES, STRIDE = 2 * HEAD_DIM + 16, ACROSS = HEAD_DIM / Tiling::DQ_COLUMNS;
    __shared__ __align__(16) char tile[QUERIES * STRIDE];
    const int batch = blockIdx.y / heads + first_batch, head = blockIdx.y % heads, first_query = blockIdx.x * QUERIES;
    const Bounds bounds = bounds_of(cu_seqlens_q, nullptr, batch, seq_len, 0);
    if (first_query >= bounds.seq_len) return;
    const RowTiles rows{cu_seqlens_q ? bounds.first_query / QUERIES + batch : 0, row_tiles, cu_seqlens_q ? 0 : batch * heads};
    const long long part = rows.index(head, blockIdx.x) * Tiling::WARPS + warp_id();
    const float4* own = reinterpret_cast<const float4*>(sums) + part * Tiling::DQ_FRAGMENTS * 32 + lane_id();
    char* corner = tile + (warp_id() / ACROSS * 32 + lane_id() / 4) * STRIDE + (warp_id() % ACROSS * Tiling::DQ_COLUMNS + lane_id() % 4 * 2) * 2;
#pragma unroll
    for (int n = 0; n < Tiling::DQ_FRAGMENTS; ++n) {
        const float4 four = own[32 * n];
        char* upper = corner + n % 2 * 16 * STRIDE + n / 2 * 16;
        *reinterpret_cast<unsigned*>(upper) = pack_pair<T>(four.x * scale, four.y * scale);
        *reinterpret_cast<unsigned*>(upper + 8 * STRIDE) = pack_pair<T>(four.z * scale, four.w * scale);
    }
    __syncthreads();
    T* target = head_matrix(dq, strides, batch, head) + (bounds.first_query + first_query) * strides.seq;
    for (int n = threadIdx.x; n < QUERIES * (HEAD_DIM / 8); n += Tiling::THREADS) {
        const int row = n / (HEAD_DIM / 8), chunk = n % (HEAD_DIM / 8);
        if (first_query + row < bounds.seq_len && 8 * chunk < head_dim)
            *reinterpret_cast<uint4*>(target + row * strides.seq + 8 * chunk) = *reinterpret_cast<const uint4*>(tile + row * STRIDE + 16 * chunk);
    }
}
