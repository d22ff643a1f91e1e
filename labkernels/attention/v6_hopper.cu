// v6: attention on Hopper (sm_90a). The copy engine fetches, warpgroups multiply, and one's softmax hides under another one's products.
//
// The idea. v5's warps do everything: they copy, they multiply, they exponentiate, and the tensor cores wait while they do the rest. Here
// each has one part.
//
//   producer    one thread. It asks the copy engine (TMA) for a tile of queries, then for tiles of keys and values, two of each in flight,
//               told by mbarriers when one has been read and may be overwritten. Its registers go to the others (setmaxnreg).
//   consumers   two or three warpgroups with 64 queries each. wgmma reads q, k and v from shared memory and p from registers, where the
//               accumulators of q k^T lie just as the next product wants them.
//
//   a consumer's time     ... | q k^T of tile j+1, p v of tile j | softmax of tile j+1 | ...      both products are issued at once, and the
//                                        the tensor cores go on with p v  ^                       softmax begins when the first is done
//   the other consumer's      | softmax                          | q k^T, p v          | ...      named barriers keep them out of step
//
// A block stays for many tiles of queries and fetches the next one's tiles while it finishes this one's; the result leaves through the
// place of its queries. Where a mask makes rows differ in length, the longest come first.
//
// What it predicts. 64 queries x 128 keys x 128: 2 x 512 clocks of tensor core, 512 of exp, 300 of float32, if all of them overlap 1024.
// At head_dim 64 the products take half of that and exp as long as before: there the exponentials are the limit.
//
// What it measured: data/measured/h200/attention.csv, bf16, 16384 tokens of 2048, S = 16384: 650 TFLOP/s at head_dim 128, cuDNN 594 TFLOP/s,
// FlashAttention-2 354 TFLOP/s; causal 578, 625 and 325; at head_dim 64 490, 456 and 308; at 256 686, 662 and 321. While it was made, at head_dim 128, full: with turns 689, without (the
// warpgroups' order left to chance) 652; with tiles of 176 keys and one tile of queries 634.
//
// What it still wastes: short causal rows, of which the first tile's softmax hides under nothing, and half of the products on the diagonal. Causal,
// cuDNN is 1.22, 1.16 and 1.12 times as fast at S = 512, 1024 and 2048 and head_dim 128, 1.36 times at 512 and 256, 1.39 at 1024 and 64, where
// even v5 is 4% faster.
#include "hopper.cuh"
#include "setmaxnreg.cuh"
#include "visible.cuh"

template <class T, int HEAD_DIM, int CONSUMERS, int BLOCK_K, int STAGES, int Q_BUFFERS, int MASK>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    attention_hopper(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                     const __grid_constant__ TensorMap out_map, T* out, Strides out_strides, float* lse, long long lse_batch, long long lse_head,
                     const void* mask_values, MaskStrides mask_strides, const int* cu_seqlens_q, const int* cu_seqlens_k, int batches, int heads,
                     int group, int seq_len, int kv_len, int head_dim, int window_left, int window_right, float scale) {
    using Memory = AttentionLayout<HEAD_DIM, 64 * CONSUMERS, BLOCK_K, STAGES, Q_BUFFERS>;
    constexpr int BLOCK_Q = Memory::BLOCK_Q, PANELS = Memory::PANELS;
    extern __shared__ __align__(1024) char dynamic[];
    const Memory memory(dynamic);
    const int warpgroup = threadIdx.x / GROUP;
    const Schedule<BLOCK_Q> schedule(batches, heads, seq_len, window_right < UNLIMITED);

    if (threadIdx.x == 0) {
        for (int i = 0; i < Q_BUFFERS; ++i) {
            mbarrier_init(memory.q_full() + i, 1);
            mbarrier_init(memory.q_empty() + i, CONSUMERS);
        }
        for (int i = 0; i < STAGES; ++i) {
            mbarrier_init(memory.k_full() + i, 1);
            mbarrier_init(memory.v_full() + i, 1);
            mbarrier_init(memory.k_empty() + i, 4 * CONSUMERS);
            mbarrier_init(memory.v_empty() + i, 4 * CONSUMERS);
        }
        fence_mbarrier_init();
    }
    __syncthreads();

    if (warpgroup == CONSUMERS) {
        register_deallocate<CONSUMERS == 3 ? 32 : 24>();
        if (threadIdx.x % GROUP != 0) return;
        Ring<Q_BUFFERS> q_ring;
        Ring<STAGES> k_ring, v_ring;
        for (int turn = 0; turn < schedule.turns(); ++turn) {
            Item item;
            if (!schedule.item(turn, item)) continue;
            const Bounds bounds = bounds_of(cu_seqlens_q, cu_seqlens_k, item.batch, seq_len, kv_len);
            if (item.first_query >= bounds.seq_len) continue;
            const Window window(bounds.seq_len, bounds.kv_len, window_left, window_right);
            const Tiles tiles = window.template keys<BLOCK_Q, BLOCK_K>(item.first_query);
            const int q_batch = cu_seqlens_q ? 0 : item.batch, k_batch = cu_seqlens_k ? 0 : item.batch, kv_head = item.head / group;

            mbarrier_wait(memory.q_empty() + q_ring.stage, q_ring.parity ^ 1);
            Mbarrier* arrived = memory.q_full() + q_ring.stage;
            mbarrier_arrive_expect_tx(arrived, Memory::Q_BYTES);
            for (int panel = 0; panel < PANELS; ++panel)
                tma_load(memory.q(q_ring.stage, panel), q, arrived, panel * 64, bounds.first_query + item.first_query, item.head, q_batch);
            q_ring.advance();

            // K is asked for one tile ahead of V, as it is used.
            for (int tile = tiles.end - 1; tile >= tiles.first - 1; --tile) {
                if (tile >= tiles.first) {
                    mbarrier_wait(memory.k_empty() + k_ring.stage, k_ring.parity ^ 1);
                    arrived = memory.k_full() + k_ring.stage;
                    mbarrier_arrive_expect_tx(arrived, Memory::KV_BYTES);
                    for (int panel = 0; panel < PANELS; ++panel)
                        tma_load(memory.k(k_ring.stage, panel), k, arrived, panel * 64, bounds.first_key + tile * BLOCK_K, kv_head, k_batch);
                    k_ring.advance();
                }
                if (tile + 1 < tiles.end) {
                    mbarrier_wait(memory.v_empty() + v_ring.stage, v_ring.parity ^ 1);
                    arrived = memory.v_full() + v_ring.stage;
                    mbarrier_arrive_expect_tx(arrived, Memory::KV_BYTES);
                    for (int panel = 0; panel < PANELS; ++panel)
                        tma_load(memory.v(v_ring.stage, panel), v, arrived, panel * 64, bounds.first_key + (tile + 1) * BLOCK_K, kv_head, k_batch);
                    v_ring.advance();
                }
            }
        }
        return;
    }

    register_allocate<CONSUMERS == 3 ? 160 : 240>();
    const int thread = threadIdx.x % GROUP, lane = threadIdx.x % 32;
    const int own_row = warpgroup * 64 + thread / 32 * 16 + lane / 4;  // and the eighth one below
    Ring<Q_BUFFERS> q_ring;
    Ring<STAGES> k_ring, v_ring;
    int stored = -1;  // the buffer of q from which a result is on its way out
    auto release = [&](Mbarrier* empty) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(empty);
    };
    auto give_back = [&] {
        if (thread == 0 && stored >= 0) {
            tma_wait_read<0>();
            mbarrier_arrive(memory.q_empty() + stored);
        }
        stored = -1;
    };
    Turns<CONSUMERS> turns(warpgroup);

    for (int turn = 0; turn < schedule.turns(); ++turn) {
        Item item;
        if (!schedule.item(turn, item)) continue;
        const Bounds bounds = bounds_of(cu_seqlens_q, cu_seqlens_k, item.batch, seq_len, kv_len);
        if (item.first_query >= bounds.seq_len) continue;
        const Window window(bounds.seq_len, bounds.kv_len, window_left, window_right);
        const Tiles tiles = window.template keys<BLOCK_Q, BLOCK_K>(item.first_query);
        const Mask<MASK, T> mask(mask_values, mask_strides, item.batch, item.head);
        const int query = item.first_query + own_row;

        float o[HEAD_DIM / 2], s[BLOCK_K / 2];
        unsigned p[BLOCK_K / 16][4];
        Softmax<BLOCK_K, MASK, T> softmax(scale);
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 2; ++i) o[i] = 0.0f;

        auto multiply_qk = [&] {
#pragma unroll
            for (int step = 0; step < HEAD_DIM / 16; ++step) {
                const MatrixDescriptor a = matrix_descriptor(memory.q(q_ring.stage, step / 4) + warpgroup * 64 * ROW_BYTES, 0, 8 * ROW_BYTES, 128);
                const MatrixDescriptor b = matrix_descriptor(memory.k(k_ring.stage, step / 4), 0, 8 * ROW_BYTES, 128);
                wgmma<T>(s, a + (step % 4 * 32 >> 4), b + (step % 4 * 32 >> 4), step > 0);
            }
            wgmma_commit();
        };
        auto multiply_pv = [&] {
            const MatrixDescriptor b = matrix_descriptor(memory.v(v_ring.stage, 0), Memory::PANEL_BYTES, 8 * ROW_BYTES, 128);
#pragma unroll
            for (int step = 0; step < BLOCK_K / 16; ++step) wgmma<T, true>(o, p[step], b + (step * 16 * ROW_BYTES >> 4), true);
            wgmma_commit();
        };
        auto next_p = [&] {
#pragma unroll
            for (int step = 0; step < BLOCK_K / 16; ++step)
#pragma unroll
                for (int i = 0; i < 4; ++i) p[step][i] = pack_pair<T>(s[8 * step + 2 * i], s[8 * step + 2 * i + 1]);
        };
        auto one_softmax = [&](int tile) {
            if (MASK || window.template hides<BLOCK_Q, BLOCK_K>(item.first_query, tile * BLOCK_K))
                softmax.template step<true>(s, window, mask, query, tile * BLOCK_K);
            else softmax.template step<false>(s, window, mask, query, tile * BLOCK_K);
        };

        mbarrier_wait(memory.q_full() + q_ring.stage, q_ring.parity);
        if (tiles.end > tiles.first) {
            int tile = tiles.end - 1;
            mbarrier_wait(memory.k_full() + k_ring.stage, k_ring.parity);
            wgmma_fence();
            multiply_qk();
            const int missing = (tile + 1) * BLOCK_K - bounds.kv_len;
            if (cu_seqlens_k != nullptr && missing > 0) {  // behind the last key lie another sequence's values: 0 times NaN would be NaN
                mbarrier_wait(memory.v_full() + v_ring.stage, v_ring.parity);
                if (warpgroup == 0) {
                    for (int panel = 0; panel < PANELS; ++panel)
                        for (int i = thread; i < missing * 8; i += GROUP)
                            reinterpret_cast<int4*>(memory.v(v_ring.stage, panel) + (BLOCK_K - missing) * ROW_BYTES)[i] = make_int4(0, 0, 0, 0);
                    fence_proxy_async_shared();
                }
                named_barrier_sync(8, CONSUMERS * GROUP);
            }
            wgmma_wait<0>(s);
            release(memory.k_empty() + k_ring.stage);
            k_ring.advance();
            one_softmax(tile);
            next_p();
            if (Q_BUFFERS > 1) give_back();
            for (--tile; tile >= tiles.first; --tile) {
                mbarrier_wait(memory.k_full() + k_ring.stage, k_ring.parity);
                turns.take();
                wgmma_fence();
                multiply_qk();
                mbarrier_wait(memory.v_full() + v_ring.stage, v_ring.parity);
                multiply_pv();
                turns.pass();
                wgmma_wait<1>(s);
                release(memory.k_empty() + k_ring.stage);
                k_ring.advance();
                one_softmax(tile);
                wgmma_wait<0>(o);
                release(memory.v_empty() + v_ring.stage);
                v_ring.advance();
                softmax.rescale(o);
                next_p();
            }
            mbarrier_wait(memory.v_full() + v_ring.stage, v_ring.parity);
            wgmma_fence();
            multiply_pv();
            wgmma_wait<0>(o);
            release(memory.v_empty() + v_ring.stage);
            v_ring.advance();
        } else {
            give_back();
        }

        softmax.finish(o);
        if (lse != nullptr && lane % 4 == 0) {
            float* row = lse + item.batch * lse_batch + item.head * lse_head + (cu_seqlens_q ? bounds.first_query : 0) + query;
            if (query < bounds.seq_len) row[0] = softmax.lse(0);
            if (query + 8 < bounds.seq_len) row[8] = softmax.lse(1);
        }

        // The result leaves through the place of this warpgroup's queries.
        const int staged_row = thread / 32 * 16 + lane % 16;
#pragma unroll
        for (int panel = 0; panel < PANELS; ++panel) {
            char* staged = memory.q(q_ring.stage, panel) + warpgroup * 64 * ROW_BYTES;
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                unsigned packed[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) packed[i] = pack_pair<T>(o[32 * panel + 8 * pair + 2 * i], o[32 * panel + 8 * pair + 2 * i + 1]);
                stmatrix(staged + staged_row * ROW_BYTES + (((2 * pair + lane / 16) ^ staged_row % 8) << 4), packed);
            }
        }
        fence_proxy_async_shared();
        named_barrier_sync(1 + warpgroup, GROUP);
        const int first_row = item.first_query + warpgroup * 64, rows = min(64, bounds.seq_len - first_row);
        if (cu_seqlens_q == nullptr || rows == 64) {
            if (thread == 0 && rows > 0) {
                for (int panel = 0; panel < PANELS; ++panel)
                    tma_store(out_map, memory.q(q_ring.stage, panel) + warpgroup * 64 * ROW_BYTES, panel * 64, bounds.first_query + first_row, item.head,
                              cu_seqlens_q ? 0 : item.batch);
                tma_commit();
            }
        } else {  // the rest of a packed sequence: the copy engine would write into the next one
            for (int i = thread; i < rows * (HEAD_DIM / 8); i += GROUP) {
                const int row = i / (HEAD_DIM / 8), piece = i % (HEAD_DIM / 8);
                const char* staged = memory.q(q_ring.stage, piece / 8) + (warpgroup * 64 + row) * ROW_BYTES + ((piece % 8 ^ row % 8) << 4);
                if (piece * 8 < head_dim)
                    *reinterpret_cast<int4*>(head_matrix(out, out_strides, 0, item.head) + (bounds.first_query + first_row + row) * out_strides.seq +
                                             piece * 8) = *reinterpret_cast<const int4*>(staged);
            }
            named_barrier_sync(1 + warpgroup, GROUP);
        }
        stored = q_ring.stage;
        if (Q_BUFFERS == 1) give_back();
        q_ring.advance();
    }
    give_back();
    turns.end();
}
