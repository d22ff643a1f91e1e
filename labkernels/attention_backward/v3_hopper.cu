// v3: the gradients of attention on Hopper (sm_90a).
//
// The idea. A block owns 128 keys and their values, which stay in shared memory, and walks over the queries that see them. Two warpgroups have
// 64 keys each, and compute everything transposed: s^T = k q^T and dp^T = v grad^T lie in registers as wgmma wants the left operand of
// dv += p^T grad and of dk += ds^T q. Only ds crosses shared memory, since dq = ds k sums over the keys of both. Sums of dq go to global
// memory by the copy engine's addition, in the order in which registers hold them; a small kernel makes rows of them at the end.
//
//   in flight      dp(j)            | dv(j)          | dq(j), s(j+1), dk(j)
//   the threads    p = exp2(s - lse)| ds = p (dp - d)| dq(j) to shared memory          d = sum of grad * out over a row
//
// ptxas serialises all wgmma of a kernel, and says so (C7515), if it cannot see where a group ends that holds registers the threads write
// to. So each step ends with nothing in flight, and the last one multiplies s once more than it must.
//
// What it predicts. 5 products of 64 x 128 x 128: 2560 clocks, and 512 of exp that run beside them.
//
// What it measured: data/measured/h200/attention_backward.csv, bf16, 16384 tokens of 2048, S = 8192: 523 TFLOP/s at head_dim 128, cuDNN 530 TFLOP/s,
// FlashAttention-2 302 TFLOP/s; causal 502, 535 and 283; at head_dim 64 475, cuDNN 466. On the way, at S = 2048, head_dim 128:
//
//   blocks at work on as many heads as there are, each tile of q read by one block at a time              345
//   blocks at work on neighbouring keys of one head: q, grad and the sums of dq stay in L2                468
//   each block begins at another tile of queries, so that they do not add to the same sums of dq          474 (head_dim 64: 391 -> 431)
//
// Deterministic: a block waits for its turn to add to a tile's sums. 306, and 288 causal, where blocks begin at the queries whose turn it is.
//
// What it still wastes: the two warpgroups meet once a step; softmax and products of one warpgroup do not overlap beyond what is drawn above.
#include "../attention/hopper.cuh"
#include "backward.cuh"
#include "setmaxnreg.cuh"
#include "sums.cuh"

constexpr int BLOCK_K = 128, STAGES = 2, CONSUMERS = 2;

// Panels of 64 columns again; queries come in tiles with their lse and delta, sums of dq leave through `dq`.
template <int HEAD_DIM, int BLOCK_Q>
struct BackwardLayout {
    static constexpr int PANELS = HEAD_DIM / 64, PANEL = BLOCK_Q * ROW_BYTES, KV_PANEL = BLOCK_K * ROW_BYTES;
    static constexpr int Q_BYTES = PANELS * PANEL, KV_BYTES = PANELS * KV_PANEL, DS_BYTES = BLOCK_Q / 64 * KV_PANEL, ROW_VALUES = BLOCK_Q * 4;
    static constexpr int DQ_BYTES = BLOCK_Q * HEAD_DIM * 4;
    char* base;

    __device__ explicit BackwardLayout(char* shared) : base(shared) {}
    __device__ char* k(int panel) const { return base + panel * KV_PANEL; }
    __device__ char* v(int panel) const { return base + KV_BYTES + panel * KV_PANEL; }
    __device__ char* q(int stage, int panel) const { return base + 2 * KV_BYTES + stage * Q_BYTES + panel * PANEL; }
    __device__ char* grad(int stage, int panel) const { return q(STAGES + stage, panel); }
    __device__ char* ds(int buffer, int panel) const { return q(2 * STAGES, 0) + buffer * DS_BYTES + panel * KV_PANEL; }
    __device__ char* dq() const { return ds(2, 0); }
    __device__ float* lse(int stage) const { return reinterpret_cast<float*>(dq() + DQ_BYTES) + stage * BLOCK_Q; }
    __device__ float* delta(int stage) const { return lse(STAGES + stage); }
    __device__ Mbarrier* kv_full() const { return reinterpret_cast<Mbarrier*>(lse(2 * STAGES)); }
    __device__ Mbarrier* q_full() const { return kv_full() + 1; }
    __device__ Mbarrier* q_empty() const { return q_full() + STAGES; }
    __device__ Mbarrier* grad_full() const { return q_empty() + STAGES; }
    __device__ Mbarrier* grad_empty() const { return grad_full() + STAGES; }
};

__device__ inline void zero_rows(char* tile, int first, int end, int thread) {
    for (int i = first * 8 + thread; i < end * 8; i += GROUP) reinterpret_cast<int4*>(tile)[i] = make_int4(0, 0, 0, 0);
}

// One block: the gradients of BLOCK_K keys and values of one head, over all queries that see them. Launch (tiles, heads of all batches from
// first_batch on) blocks.
template <class T, int HEAD_DIM, int BLOCK_Q, int MASK, bool DETERMINISTIC>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    attention_backward_hopper(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                              const __grid_constant__ TensorMap grad, const __grid_constant__ TensorMap dq_sums, const __grid_constant__ TensorMap dk_map,
                              const __grid_constant__ TensorMap dv_map, T* dk_out, T* dv_out, Strides dk_strides, Strides dv_strides, const float* lse,
                              const float* delta, int* turns, const void* mask_values, MaskStrides mask_strides, const int* cu_seqlens_q,
                              const int* cu_seqlens_k, int heads, int group, int seq_len, int kv_len, int head_dim, int row_tiles, int window_left,
                              int window_right, float scale, int first_batch) {
    using Memory = BackwardLayout<HEAD_DIM, BLOCK_Q>;
    constexpr int PANELS = Memory::PANELS, PARTS = BLOCK_Q / 64;
    constexpr int DQ_COLUMNS = PARTS == 1 ? HEAD_DIM / 2 : HEAD_DIM;  // of a warpgroup: half of the columns, or half of the queries
    extern __shared__ __align__(1024) char dynamic[];
    const Memory memory(dynamic);
    const int warpgroup = threadIdx.x / GROUP, thread = threadIdx.x % GROUP, lane = threadIdx.x % 32;
    const int kv_heads = heads / group, batch = blockIdx.y / kv_heads + first_batch, kv_head = blockIdx.y % kv_heads;
    const int key_tile = DETERMINISTIC ? gridDim.x - 1 - blockIdx.x : blockIdx.x, first_key = key_tile * BLOCK_K;
    const Bounds bounds = bounds_of(cu_seqlens_q, cu_seqlens_k, batch, seq_len, kv_len);
    if (first_key >= bounds.kv_len) return;
    const Window window(bounds.seq_len, bounds.kv_len, window_left, window_right);
    Tiles tiles = window.template queries<BLOCK_Q, BLOCK_K>(first_key);
    const int count = max(0, tiles.end - tiles.first), steps = group * count;
    // Blocks of a head begin at different queries, so that they do not all add to the same sums of dq. In deterministic mode the blocks with the
    // last keys come first, each at the first queries that see it, which is the order in which the sums of dq want them.
    const int offset = DETERMINISTIC || count == 0 ? 0 : blockIdx.x % count;
    auto tile_of = [&](int step) { return tiles.first + (step + offset) % count; };
    const int q_batch = cu_seqlens_q ? 0 : batch, k_batch = cu_seqlens_k ? 0 : batch;
    const RowTiles rows{cu_seqlens_q ? bounds.first_query / BLOCK_Q + batch : 0, row_tiles, cu_seqlens_q ? 0 : batch * heads};

    if (threadIdx.x == 0) {
        mbarrier_init(memory.kv_full(), 1);
        for (int i = 0; i < STAGES; ++i) {
            mbarrier_init(memory.q_full() + i, 1);
            mbarrier_init(memory.grad_full() + i, 1);
            mbarrier_init(memory.q_empty() + i, 4 * CONSUMERS);
            mbarrier_init(memory.grad_empty() + i, 4 * CONSUMERS);
        }
        fence_mbarrier_init();
    }
    __syncthreads();

    if (warpgroup == CONSUMERS) {
        register_deallocate<24>();
        if (thread != 0) return;
        mbarrier_arrive_expect_tx(memory.kv_full(), 2 * Memory::KV_BYTES);
        for (int panel = 0; panel < PANELS; ++panel) {
            tma_load(memory.k(panel), k, memory.kv_full(), panel * 64, bounds.first_key + first_key, kv_head, k_batch);
            tma_load(memory.v(panel), v, memory.kv_full(), panel * 64, bounds.first_key + first_key, kv_head, k_batch);
        }
        Ring<STAGES> ring;
        for (int step = 0; step < steps; ++step, ring.advance()) {
            const int head = kv_head * group + step / count, tile = tile_of(step), row = bounds.first_query + tile * BLOCK_Q;
            const long long values = rows.index(head, tile) * BLOCK_Q;
            mbarrier_wait(memory.q_empty() + ring.stage, ring.parity ^ 1);
            Mbarrier* arrived = memory.q_full() + ring.stage;
            mbarrier_arrive_expect_tx(arrived, Memory::Q_BYTES + Memory::ROW_VALUES);
            for (int panel = 0; panel < PANELS; ++panel) tma_load(memory.q(ring.stage, panel), q, arrived, panel * 64, row, head, q_batch);
            bulk_load(memory.lse(ring.stage), lse + values, Memory::ROW_VALUES, arrived);
            mbarrier_wait(memory.grad_empty() + ring.stage, ring.parity ^ 1);
            arrived = memory.grad_full() + ring.stage;
            mbarrier_arrive_expect_tx(arrived, Memory::Q_BYTES + Memory::ROW_VALUES);
            for (int panel = 0; panel < PANELS; ++panel) tma_load(memory.grad(ring.stage, panel), grad, arrived, panel * 64, row, head, q_batch);
            bulk_load(memory.delta(ring.stage), delta + values, Memory::ROW_VALUES, arrived);
        }
        return;
    }

    register_allocate<240>();
    float dk[HEAD_DIM / 2], dv[HEAD_DIM / 2], s[BLOCK_Q / 2], dp[BLOCK_Q / 2], dq[DQ_COLUMNS / 2];
    unsigned p[BLOCK_Q / 16][4], ds[BLOCK_Q / 16][4];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; ++i) dk[i] = dv[i] = 0.0f;
    const int own_key = first_key + warpgroup * 64 + thread / 32 * 16 + lane / 4;  // and the eighth one behind
    auto release = [&](Mbarrier* empty) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(empty);
    };
    // s^T (keys x queries) = k q^T, and dp^T = v grad^T the same way
    auto multiply_s = [&](float(&sums)[BLOCK_Q / 2], char* keys, char* queries) {
#pragma unroll
        for (int step = 0; step < HEAD_DIM / 16; ++step) {
            const MatrixDescriptor a = matrix_descriptor(keys + step / 4 * Memory::KV_PANEL + warpgroup * 64 * ROW_BYTES, 0, 8 * ROW_BYTES, 128);
            const MatrixDescriptor b = matrix_descriptor(queries + step / 4 * Memory::PANEL, 0, 8 * ROW_BYTES, 128);
            wgmma<T>(sums, a + (step % 4 * 32 >> 4), b + (step % 4 * 32 >> 4), step > 0);
        }
        wgmma_commit();
    };
    // dv += p^T grad, dk += ds^T q
    auto multiply_rows = [&](float(&sums)[HEAD_DIM / 2], const unsigned(&a)[BLOCK_Q / 16][4], char* rows) {
        const MatrixDescriptor b = matrix_descriptor(rows, Memory::PANEL, 8 * ROW_BYTES, 128);
#pragma unroll
        for (int step = 0; step < BLOCK_Q / 16; ++step) wgmma<T, true>(sums, a[step], b + (step * 16 * ROW_BYTES >> 4), true);
        wgmma_commit();
    };
    // dq (queries x columns) = ds k
    auto multiply_dq = [&](int buffer) {
        const MatrixDescriptor a = matrix_descriptor(memory.ds(buffer, PARTS == 1 ? 0 : warpgroup), 0, 8 * ROW_BYTES, 128);
        const MatrixDescriptor b = matrix_descriptor(memory.k(PARTS == 1 ? warpgroup * PANELS / 2 : 0), Memory::KV_PANEL, 8 * ROW_BYTES, 128);
#pragma unroll
        for (int step = 0; step < BLOCK_K / 16; ++step)
            wgmma<T, true, true>(dq, a + (step * 16 * ROW_BYTES >> 4), b + (step * 16 * ROW_BYTES >> 4), step > 0);
        wgmma_commit();
    };

    mbarrier_wait(memory.kv_full(), 0);
    const int keys = min(BLOCK_K, bounds.kv_len - first_key);
    if (cu_seqlens_k != nullptr && keys < BLOCK_K) {  // behind the last key lies another sequence: 0 times NaN would be NaN
        if (warpgroup == 0)
            for (int panel = 0; panel < PANELS; ++panel) {
                zero_rows(memory.k(panel), keys, BLOCK_K, thread);
                zero_rows(memory.v(panel), keys, BLOCK_K, thread);
            }
        fence_proxy_async_shared();
        named_barrier_sync(3, CONSUMERS * GROUP);
    }
    Ring<STAGES> ring;
    auto q_arrived = [&](const Ring<STAGES>& at, int step) {
        mbarrier_wait(memory.q_full() + at.stage, at.parity);
        const int queries = bounds.seq_len - tile_of(step) * BLOCK_Q;
        if (cu_seqlens_q != nullptr && queries < BLOCK_Q) {
            mbarrier_wait(memory.grad_full() + at.stage, at.parity);
            if (warpgroup == 0)
                for (int panel = 0; panel < PANELS; ++panel) {
                    zero_rows(memory.q(at.stage, panel), queries, BLOCK_Q, thread);
                    zero_rows(memory.grad(at.stage, panel), queries, BLOCK_Q, thread);
                }
            fence_proxy_async_shared();
            named_barrier_sync(3, CONSUMERS * GROUP);
        }
    };
    if (steps > 0) {
        q_arrived(ring, 0);
        wgmma_fence();
        multiply_s(s, memory.k(0), memory.q(ring.stage, 0));
        wgmma_wait<0>(s);
    }
    for (int step = 0; step < steps; ++step) {
        const int head = kv_head * group + step / count, first_query = tile_of(step) * BLOCK_Q;
        Ring<STAGES> next = ring;
        next.advance();
        mbarrier_wait(memory.grad_full() + ring.stage, ring.parity);
        wgmma_fence();
        multiply_s(dp, memory.v(0), memory.grad(ring.stage, 0));

        const float* row_lse = memory.lse(ring.stage) + lane % 4 * 2;
        const Mask<MASK, T> mask(mask_values, mask_strides, batch, head);
        if (MASK || window.template hides<BLOCK_Q, BLOCK_K>(first_query, first_key)) {
#pragma unroll
            for (int i = 0; i < BLOCK_Q / 2; ++i) {
                const int query = first_query + 8 * (i / 4) + lane % 4 * 2 + i % 2, key = own_key + i / 2 % 2 * 8;
                const bool seen = query >= window.first_query(key) && query < window.end_query(key) && key < bounds.kv_len;
                const float score = seen ? mask.apply(s[i] * scale, query, key) : -CUDART_INF_F;
                s[i] = exp2_approx(score - row_lse[8 * (i / 4) + i % 2]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < BLOCK_Q / 2; ++i) s[i] = exp2_approx(fmaf(s[i], scale, -row_lse[8 * (i / 4) + i % 2]));
        }
#pragma unroll
        for (int i = 0; i < BLOCK_Q / 4; ++i) p[i / 4][i % 4] = pack_pair<T>(s[2 * i], s[2 * i + 1]);
        wgmma_fence();
        multiply_rows(dv, p, memory.grad(ring.stage, 0));

        wgmma_wait<1>(dp);
        const float* row_delta = memory.delta(ring.stage) + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < BLOCK_Q / 2; i += 2) {
            float low, high;
            unpack_pair<T>(p[i / 8][i / 2 % 4], low, high);
            low *= dp[i] - row_delta[8 * (i / 4)];
            high *= dp[i + 1] - row_delta[8 * (i / 4) + 1];
            ds[i / 8][i / 2 % 4] = pack_pair<T>(low, high);
        }
        const int row = warpgroup * 64 + thread / 32 * 16 + lane % 16;
#pragma unroll
        for (int i = 0; i < BLOCK_Q / 16; ++i)
            stmatrix(memory.ds(step % 2, i / 4) + row * ROW_BYTES + (((i % 4 * 2 + lane / 16) ^ row % 8) << 4), ds[i]);
        fence_proxy_async_shared();
        if (thread == 0) tma_wait_read<0>();  // the sums of dq that are on their way: behind the barrier their place is free
        wgmma_wait<0>(dv);
        release(memory.grad_empty() + ring.stage);
        named_barrier_sync(3, CONSUMERS * GROUP);

        if (step + 1 < steps) q_arrived(next, step + 1);
        wgmma_fence();
        multiply_dq(step % 2);
        multiply_s(s, memory.k(0), memory.q(step + 1 < steps ? next.stage : ring.stage, 0));
        multiply_rows(dk, ds, memory.q(ring.stage, 0));

        wgmma_wait<2>(dq);
        float4* staged = reinterpret_cast<float4*>(memory.dq() + warpgroup * Memory::DQ_BYTES / 2);
#pragma unroll
        for (int i = 0; i < DQ_COLUMNS / 8; ++i) staged[i * GROUP + thread] = make_float4(dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
        fence_proxy_async_shared();
        named_barrier_sync(1 + warpgroup, GROUP);
        if (thread == 0) {
            const long long tile = rows.index(head, tile_of(step));
            int* turn = turns + 2 * tile + warpgroup;
            if (DETERMINISTIC) wait_for_turn(turn, window.template keys<BLOCK_Q, BLOCK_K>(first_query).end - 1 - key_tile);
            constexpr int LINES = Memory::DQ_BYTES / 2 / 1024;  // of 256 floats
            tma_reduce_add(dq_sums, staged, 0, static_cast<int>(2 * tile + warpgroup) * LINES);
            tma_commit();
            if (DETERMINISTIC) {
                tma_wait<0>();
                pass_turn(turn);
            }
        }
        wgmma_wait<0>(s);
        release(memory.q_empty() + ring.stage);
        ring = next;
    }
    // Nobody reads k and v any more, once both warpgroups are here: their gradients leave through their places.
    named_barrier_sync(3, CONSUMERS * GROUP);
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; ++i) dk[i] *= scale * LN_OF_2;
    const int first_row = first_key + warpgroup * 64, own_rows = min(64, bounds.kv_len - first_row);
#pragma unroll
    for (int which = 0; which < 2; ++which) {
        char* tile = which == 0 ? memory.k(0) : memory.v(0);
        const float* sums = which == 0 ? dk : dv;
        const int row = warpgroup * 64 + thread / 32 * 16 + lane % 16;
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 16; ++i) {
            unsigned packed[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) packed[j] = pack_pair<T>(sums[8 * i + 2 * j], sums[8 * i + 2 * j + 1]);
            stmatrix(tile + i / 4 * Memory::KV_PANEL + row * ROW_BYTES + (((i % 4 * 2 + lane / 16) ^ row % 8) << 4), packed);
        }
    }
    fence_proxy_async_shared();
    named_barrier_sync(1 + warpgroup, GROUP);
    if (thread == 0) tma_wait_read<0>();
    if (own_rows <= 0) return;
    if (cu_seqlens_k == nullptr || own_rows == 64) {
        if (thread != 0) return;
        for (int panel = 0; panel < PANELS; ++panel) {
            tma_store(dk_map, memory.k(panel) + warpgroup * 64 * ROW_BYTES, panel * 64, bounds.first_key + first_row, kv_head, k_batch);
            tma_store(dv_map, memory.v(panel) + warpgroup * 64 * ROW_BYTES, panel * 64, bounds.first_key + first_row, kv_head, k_batch);
        }
        tma_commit();
        tma_wait_read<0>();
        return;
    }
    for (int i = thread; i < own_rows * (HEAD_DIM / 8); i += GROUP) {
        const int row = i / (HEAD_DIM / 8), piece = i % (HEAD_DIM / 8), at = (warpgroup * 64 + row) * ROW_BYTES + ((piece % 8 ^ row % 8) << 4);
        if (piece * 8 >= head_dim) continue;
        const long long key = bounds.first_key + first_row + row;
        *reinterpret_cast<int4*>(head_matrix(dk_out, dk_strides, 0, kv_head) + key * dk_strides.seq + piece * 8) = *reinterpret_cast<const int4*>(memory.k(piece / 8) + at);
        *reinterpret_cast<int4*>(head_matrix(dv_out, dv_strides, 0, kv_head) + key * dv_strides.seq + piece * 8) = *reinterpret_cast<const int4*>(memory.v(piece / 8) + at);
    }
}

// dq from its sums (sums.cuh). One block of two warpgroups makes rows of them, by way of shared memory.
template <class T, int HEAD_DIM, int BLOCK_Q>
__global__ void __launch_bounds__(CONSUMERS* GROUP)
    attention_backward_finish(const float* sums, T* dq, Strides strides, const int* cu_seqlens_q, int heads, int seq_len, int head_dim, int row_tiles,
                              float scale, int first_batch) {
    using Rows = SumsAsRows<T, HEAD_DIM, BLOCK_Q>;
    constexpr int PIECES = HEAD_DIM / 8;
    __shared__ __align__(16) char tile[Rows::BYTES];
    const int batch = blockIdx.y / heads + first_batch, head = blockIdx.y % heads, queries = static_cast<int>(blockIdx.x) * BLOCK_Q;
    const Bounds bounds = bounds_of(cu_seqlens_q, nullptr, batch, seq_len, 0);
    if (queries >= bounds.seq_len) return;
    const RowTiles rows{cu_seqlens_q ? bounds.first_query / BLOCK_Q + batch : 0, row_tiles, cu_seqlens_q ? 0 : batch * heads};
    Rows::write(sums + rows.index(head, blockIdx.x) * BLOCK_Q * HEAD_DIM, scale, tile);
    __syncthreads();
    T* out = head_matrix(dq, strides, cu_seqlens_q ? 0 : batch, head) + (bounds.first_query + queries) * strides.seq;
    for (int i = threadIdx.x; i < BLOCK_Q * PIECES; i += CONSUMERS * GROUP) {
        const int r = i / PIECES, piece = i % PIECES;
        if (queries + r < bounds.seq_len && piece * 8 < head_dim)
            *reinterpret_cast<int4*>(out + r * strides.seq + piece * 8) = *reinterpret_cast<const int4*>(tile + r * Rows::STRIDE + piece * 16);
    }
}
