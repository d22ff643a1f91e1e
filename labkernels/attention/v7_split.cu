// Attention, v7: float32 from halves, on Hopper's tensor cores (sm_90a).
//   Idea      v8 of matmul for both of attention's products. split_tiles.cu writes q, k and v as scale * (high + low), halves, a scale for each
//             tile of 128 rows; then q k^T is high high + high low + low high, three products of the tensor cores, and p v is as well, with
//             the probabilities split in registers. v6's producer brings both halves of a tile; a consumer's scores become its
//             probabilities in place, and where those were the products with v of this tile add up. Tensor cores cut off what does not fit into
//             their sums: so these begin anew at every tile, and are added to float32 registers that have the tile's scale and the
//             softmax's correction.
//   Predicts  Three times v6's products, and twice its exponentials' time for splitting: while one warpgroup does that the other one has its
//             products computed. A third of v6's speed, 200 TFLOP/s; float32 on FMAs has 50, on tf32 with three products 45 (PyTorch's).
//   Measured  data/measured/h200/attention.csv: 32 heads of 128, S = 4096: 1.23 ms, v4 6.58, PyTorch's 6.03; at 512 0.044, 0.115 and 0.103. Without
//             turns at the tensor cores 5% slower, while it was made.
//   Wastes    As v8 does: the split tensors are written and read again, a twentieth of the time at S = 4096, a quarter at 512. And a
//             tile of 128 keys is 64 KB, so that there is room for one of k and one of v: the next is asked for when the last is done with.
//
// Infinity times low, which may be 0 or have the other sign than high, would be NaN. A tile with an infinity has a negative scale, and its
// products are computed once more, high with high alone: where that is not finite it is what PyTorch's float32 would give.
#include "halves.cuh"
#include "hopper.cuh"
#include "setmaxnreg.cuh"
#include "visible.cuh"

constexpr int CONSUMERS = 2, TILE = 64 * CONSUMERS;  // of queries, and of keys
constexpr float WHOLE = 0x1p14f;                     // what a probability of 1 is as a half

// Two probabilities as two halves each. None is infinite, and NaN stays one.
__device__ __forceinline__ void split_probabilities(float p0, float p1, unsigned& high, unsigned& low) {
    p0 *= WHOLE, p1 *= WHOLE;
    high = pack_f16x2(p0, p1);
    const float2 nearest = __half22float2(*reinterpret_cast<const __half2*>(&high));
    low = pack_f16x2(p0 - nearest.x, p1 - nearest.y);
}

// q, k, v: maps of (2 heads of all batches, padded rows, HEAD_DIM), halves, all high ones first; scales (heads of all batches, tiles).
template <int HEAD_DIM, int STAGES, bool IN_TURNS, int MASK>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    attention_split(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                    const float* q_scales, const float* k_scales, const float* v_scales, float* out, Strides out_strides, float* lse,
                    const void* mask_values, MaskStrides mask_strides, int batches, int heads, int group, int seq_len, int kv_len,
                    int head_dim, int window_left, int window_right, float scale) {
    using Memory = AttentionLayout<2 * HEAD_DIM, TILE, TILE, STAGES, 1>;
    constexpr int PANELS = Memory::PANELS / 2;  // of 64 columns: as many of high halves and then of low ones
    extern __shared__ __align__(1024) char dynamic[];
    const Memory memory(dynamic);
    const int warpgroup = threadIdx.x / GROUP;
    const Schedule<TILE> schedule(batches, heads, seq_len, window_right < UNLIMITED);
    const int q_tiles = (seq_len + TILE - 1) / TILE, k_tiles = (kv_len + TILE - 1) / TILE, kv_matrices = batches * (heads / group);

    if (threadIdx.x == 0) {
        mbarrier_init(memory.q_full(), 1);
        mbarrier_init(memory.q_empty(), 4 * CONSUMERS);
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
        register_deallocate<24>();
        if (threadIdx.x % GROUP != 0) return;
        Ring<1> q_ring;
        Ring<STAGES> ring;
        for (int turn = 0; turn < schedule.turns(); ++turn) {
            Item item;
            if (!schedule.item(turn, item)) continue;
            const Window window(seq_len, kv_len, window_left, window_right);
            const Tiles tiles = window.template keys<TILE, TILE>(item.first_query);
            const int matrix = item.batch * heads + item.head, kv_matrix = item.batch * (heads / group) + item.head / group;

            mbarrier_wait(memory.q_empty(), q_ring.parity ^ 1);
            mbarrier_arrive_expect_tx(memory.q_full(), Memory::Q_BYTES);
            for (int panel = 0; panel < 2 * PANELS; ++panel)
                tma_load(memory.q(0, panel), q, memory.q_full(), panel % PANELS * 64, item.first_query, panel / PANELS * batches * heads + matrix);
            q_ring.advance();
            for (int tile = tiles.end - 1; tile >= tiles.first; --tile, ring.advance()) {
                const int at = ring.stage;
                mbarrier_wait(memory.k_empty() + at, ring.parity ^ 1);
                mbarrier_arrive_expect_tx(memory.k_full() + at, Memory::KV_BYTES);
                for (int panel = 0; panel < 2 * PANELS; ++panel)
                    tma_load(memory.k(at, panel), k, memory.k_full() + at, panel % PANELS * 64, tile * TILE, panel / PANELS * kv_matrices + kv_matrix);
                mbarrier_wait(memory.v_empty() + at, ring.parity ^ 1);
                mbarrier_arrive_expect_tx(memory.v_full() + at, Memory::KV_BYTES);
                for (int panel = 0; panel < 2 * PANELS; ++panel)
                    tma_load(memory.v(at, panel), v, memory.v_full() + at, panel % PANELS * 64, tile * TILE, panel / PANELS * kv_matrices + kv_matrix);
            }
        }
        return;
    }

    register_allocate<240>();
    const int thread = threadIdx.x % GROUP, lane = threadIdx.x % 32;
    const int own_row = warpgroup * 64 + thread / 32 * 16 + lane / 4;  // and the eighth one below
    Ring<1> q_ring;
    Ring<STAGES> ring;
    auto release = [&](Mbarrier* empty) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(empty);
    };
    Turns<IN_TURNS ? CONSUMERS : 1> turns(warpgroup);

    for (int turn = 0; turn < schedule.turns(); ++turn) {
        Item item;
        if (!schedule.item(turn, item)) continue;
        const Window window(seq_len, kv_len, window_left, window_right);
        const Tiles tiles = window.template keys<TILE, TILE>(item.first_query);
        const Mask<MASK, float> mask(mask_values, mask_strides, item.batch, item.head);
        const int query = item.first_query + own_row;
        const int matrix = item.batch * heads + item.head, kv_matrix = item.batch * (heads / group) + item.head / group;
        const float q_scale = q_scales[matrix * q_tiles + item.first_query / TILE];

        float o[HEAD_DIM / 2];
        Softmax<TILE, MASK, float> softmax(scale);
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 2; ++i) o[i] = 0.0f;

        mbarrier_wait(memory.q_full(), q_ring.parity);
        for (int tile = tiles.end - 1; tile >= tiles.first; --tile, ring.advance()) {
            float s[TILE / 2];
            const float k_scale = k_scales[kv_matrix * k_tiles + tile], v_scale = v_scales[kv_matrix * k_tiles + tile];
            const float score_scale = fabsf(q_scale) * fabsf(k_scale), sum_scale = fabsf(v_scale) / WHOLE;
            const bool infinite_scores = q_scale < 0.0f || k_scale < 0.0f;
            // What is added to tensor cores' sums first is small: less of it is cut off.
            const MatrixDescriptor a = matrix_descriptor(memory.q(0, 0) + warpgroup * 64 * ROW_BYTES, 0, 8 * ROW_BYTES, 128);
            const MatrixDescriptor b = matrix_descriptor(memory.k(ring.stage, 0), 0, 8 * ROW_BYTES, 128);
            constexpr int PANEL = TILE * ROW_BYTES >> 4, LOW = PANELS * PANEL;  // in a descriptor's units
            auto multiply_high = [&](bool added) {
#pragma unroll
                for (int step = 0; step < HEAD_DIM / 16; ++step) {
                    const int at = step / 4 * PANEL + (step % 4 * 32 >> 4);
                    wgmma<__half>(s, a + at, b + at, added || step > 0);
                }
                wgmma_commit();
            };
            mbarrier_wait(memory.k_full() + ring.stage, ring.parity);
            turns.take();
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < HEAD_DIM / 16; ++step) {
                const int at = step / 4 * PANEL + (step % 4 * 32 >> 4);
                wgmma<__half>(s, a + (LOW + at), b + at, step > 0);
                wgmma<__half>(s, a + at, b + (LOW + at), true);
            }
            multiply_high(true);
            turns.pass();
            wgmma_wait<0>(s);
            if (infinite_scores) {
                float both[TILE / 2];
#pragma unroll
                for (int i = 0; i < TILE / 2; ++i) both[i] = s[i];
                wgmma_fence();
                multiply_high(false);
                wgmma_wait<0>(s);
#pragma unroll
                for (int i = 0; i < TILE / 2; ++i) s[i] = fabsf(s[i]) < CUDART_INF_F ? both[i] : s[i];
            }
            release(memory.k_empty() + ring.stage);

#pragma unroll
            for (int i = 0; i < TILE / 2; ++i) s[i] *= score_scale;
            if (MASK || window.template hides<TILE, TILE>(item.first_query, tile * TILE))
                softmax.template step<true>(s, window, mask, query, tile * TILE);
            else softmax.template step<false>(s, window, mask, query, tile * TILE);
            unsigned high[TILE / 16][4], low[TILE / 16][4];
#pragma unroll
            for (int step = 0; step < TILE / 16; ++step)
#pragma unroll
                for (int i = 0; i < 4; ++i) split_probabilities(s[8 * step + 2 * i], s[8 * step + 2 * i + 1], high[step][i], low[step][i]);

            float sums[HEAD_DIM / 2];
            const MatrixDescriptor values = matrix_descriptor(memory.v(ring.stage, 0), Memory::PANEL_BYTES, 8 * ROW_BYTES, 128);
            mbarrier_wait(memory.v_full() + ring.stage, ring.parity);
            turns.take();
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < TILE / 16; ++step) {
                const int at = step * 16 * ROW_BYTES >> 4;
                wgmma<__half, true>(sums, low[step], values + at, step > 0);
                wgmma<__half, true>(sums, high[step], values + (LOW + at), true);
            }
            auto multiply_high_values = [&](bool added) {
#pragma unroll
                for (int step = 0; step < TILE / 16; ++step)
                    wgmma<__half, true>(sums, high[step], values + (step * 16 * ROW_BYTES >> 4), added || step > 0);
                wgmma_commit();
            };
            multiply_high_values(true);
            turns.pass();
            softmax.rescale(o);
            wgmma_wait<0>(sums);
            if (v_scale < 0.0f) {  // finite sums are added here; the others once they are known
                unsigned added[HEAD_DIM / 64] = {};
#pragma unroll
                for (int i = 0; i < HEAD_DIM / 2; ++i) {
                    const bool finite = fabsf(sums[i]) < CUDART_INF_F;
                    added[i / 32] |= unsigned(finite) << i % 32;
                    if (finite) o[i] = fmaf(sums[i], sum_scale, o[i]);
                }
                wgmma_fence();
                multiply_high_values(false);
                wgmma_wait<0>(sums);
#pragma unroll
                for (int i = 0; i < HEAD_DIM / 2; ++i) sums[i] = added[i / 32] >> i % 32 & 1 ? 0.0f : sums[i];
            }
            release(memory.v_empty() + ring.stage);
#pragma unroll
            for (int i = 0; i < HEAD_DIM / 2; ++i) o[i] = fmaf(sums[i], sum_scale, o[i]);
        }
        release(memory.q_empty());
        q_ring.advance();

        softmax.finish(o);
        if (lse != nullptr && lane % 4 == 0) {
            float* const row = lse + (long long)matrix * seq_len + query;
            if (query < seq_len) row[0] = softmax.lse(0);
            if (query + 8 < seq_len) row[8] = softmax.lse(1);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (query + 8 * i >= seq_len) continue;
            float* const row = head_matrix(out, out_strides, item.batch, item.head) + (query + 8 * i) * out_strides.seq;
#pragma unroll
            for (int block = 0; block < HEAD_DIM / 8; ++block) {
                const int column = 8 * block + lane % 4 * 2, place = 4 * block + 2 * i;
                if (head_dim % 2 == 0) {
                    if (column < head_dim) *reinterpret_cast<float2*>(row + column) = make_float2(o[place], o[place + 1]);
                } else {
                    if (column < head_dim) row[column] = o[place];
                    if (column + 1 < head_dim) row[column + 1] = o[place + 1];
                }
            }
        }
    }
    turns.end();
}
