// Decode attention, v5: each warp has a ring of tokens in shared memory, which the copy engine (TMA) fills.
//   Idea      v4 asks for as much as its registers hold, and the loads of a multiprocessor's threads share one table of what is on its way: more warps,
//             or cp.async to shared memory, do not bring more. TMA copies go past it. One lane asks for 16 keys and values at a time, STAGES times
//             ahead, into a ring of its warp's own; the warp waits for nobody else. The engine stores rows swizzled, so that fragments are read
//             from them with few bank conflicts.
//   Predicts  24 KB a warp on their way, 190 KB a multiprocessor, in place of v4's 60; and of v4's loads and their addresses one lane's four
//             instructions are left. Shared memory is busy for 160 of the 436 cycles that 8 KB take to come.
//   Measured  data/measured/h200/decode_attention.csv
//   Wastes    At the end of a head's tokens a block's rings run empty before the next head's begin to fill.
#include "fence.cuh"
#include "parts.cuh"
#include "tma.cuh"

// One stage: 16 keys and 16 values, in columns of 128 bytes as TMA swizzles them, and their scales.
template <class C, int HEAD_DIM>
struct alignas(1024) Stage {
    static constexpr int COLUMNS = HEAD_DIM * sizeof(C) / 128, EACH = 128 / sizeof(C), BYTES = 2 * CHUNK * HEAD_DIM * sizeof(C);
    uint4 keys[COLUMNS][CHUNK][8], values[COLUMNS][CHUNK][8];

    static __device__ __forceinline__ uint4 piece(const uint4 (&tokens)[COLUMNS][CHUNK][8], int row, int piece) {
        return tokens[piece / 8][row][piece % 8 ^ row % 8];
    }
    // One lane asks for the tokens from `offset` on of a page.
    __device__ __forceinline__ void ask(const TensorMap& k, const TensorMap& v, Mbarrier* full, int page, int head, int offset) {
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i) {
            tma_load(keys[i], k, full, i * EACH, offset, head, page);
            tma_load(values[i], v, full, i * EACH, offset, head, page);
        }
    }
    __device__ __forceinline__ void read(Keys<C, HEAD_DIM>& into) const {
        using Cut = ::Cut<C, HEAD_DIM>;
        const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < Cut::K_LOADS; ++j) {
                const uint4 words = piece(keys, g + 8 * i, t + 4 * j);
                into.words[i][j][0] = words.x, into.words[i][j][1] = words.y, into.words[i][j][2] = words.z, into.words[i][j][3] = words.w;
            }
    }
    __device__ __forceinline__ void read(Values<C, HEAD_DIM>& into) const {
        using Cut = ::Cut<C, HEAD_DIM>;
        const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < Cut::V_LOADS; ++j) {
                const uint4 words = piece(values, 8 * (i / 2) + 2 * t + i % 2, g + 8 * j);
                into.words[i][j][0] = words.x, into.words[i][j][1] = words.y, into.words[i][j][2] = words.z, into.words[i][j][3] = words.w;
            }
    }
};

// As decode_tensor_cores of v4, on tensor maps of k and v (pages, kv_heads, page_size, head_dim) with boxes of (1, 1, 16, 128 bytes).
template <class T, class C, class Tiling, int STAGES>
__global__ void __launch_bounds__(Tiling::THREADS, Tiling::BLOCKS)
    decode_tma(const T* q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, const float* k_scale, const float* v_scale,
               const int* lengths, const int* block_table, T* out, float4* parts, float2* part_stats, unsigned* arrived, int resident, int least_tiles,
               Problem problem) {
    constexpr int HEAD_DIM = Tiling::HEAD_DIM, ROWS = Tiling::ROWS, TILE = Tiling::TILE, WARPS = Tiling::WARPS;
    static_assert(Cut<C, HEAD_DIM>::V_WORDS == 4 && HEAD_DIM * sizeof(C) % 128 == 0, "rows of 128 bytes or more");
    extern __shared__ __align__(1024) char dynamic[];
    auto* rings = reinterpret_cast<Stage<C, HEAD_DIM>*>(dynamic);
    auto& meeting = *reinterpret_cast<Meeting<T, C, Tiling>*>(dynamic);  // once the rings are empty
    __shared__ Mbarrier all_full[WARPS][STAGES];
    Stage<C, HEAD_DIM>* ring = rings + warp_id() * STAGES;
    Mbarrier* full = all_full[warp_id()];
    const int row_blocks = (problem.rows() + ROWS - 1) / ROWS, block = blockIdx.x;
    if (lane_id() == 0) {
        for (int i = 0; i < STAGES; ++i) mbarrier_init(&full[i], 1);
        fence_mbarrier_init();
    }
    __syncwarp();
    const Tiles<TILE> tiles(lengths, problem.batch, problem.kv_heads * row_blocks, resident, least_tiles);
    if (block >= tiles.blocks) return;

    int stage = 0, parity = 0, ask_stage = 0;
    const int end = tiles.first(block + 1);
    for (int tile = tiles.first(block); tile < end;) {
        const auto item = tiles.find(tile);
        const Sequence sequence(block_table, problem, item.batch, item.head / row_blocks);
        const int first_row = item.head % row_blocks * ROWS, rows = min(ROWS, problem.rows() - first_row), until = min(item.end, end);
        const int length = item.length, end_token = min(length, (until - item.first) * TILE);
        int token = (tile - item.first) * TILE + CHUNK * warp_id(), ahead = token;
        long long page = ahead < end_token ? sequence.page(ahead) : 0, ahead_page = page;  // of `ahead`, looked up one stage early
        const auto ask = [&]() {
            if (ahead >= end_token) return;
            if (lane_id() == 0) {
                mbarrier_arrive_expect_tx(&full[ask_stage], Stage<C, HEAD_DIM>::BYTES);
                ring[ask_stage].ask(k, v, &full[ask_stage], static_cast<int>(ahead_page), sequence.head, sequence.offset(ahead));
            }
            ask_stage = ask_stage + 1 == STAGES ? 0 : ask_stage + 1;
            ahead += TILE;
            if (ahead < end_token) ahead_page = sequence.page(ahead);
        };
        const auto read_scales = [&](float (&to)[2][2], const float* scales, long long page_stride, long long head_stride) {
            const float* from = scales + page * page_stride + sequence.head * head_stride + sequence.offset(token);
            for (int i = 0; i < 4; ++i) to[i / 2][i % 2] = from[min(8 * (i / 2) + 2 * (lane_id() % 4) + i % 2, length - 1 - token)];
        };
#pragma unroll
        for (int i = 0; i < STAGES; ++i) ask();
        Warp<T, C, Tiling> warp;
        warp.begin(q, sequence, first_row, length, problem);
        Keys<C, HEAD_DIM> keys;
        Values<C, HEAD_DIM> values;
        for (; token < end_token; token += TILE) {
            if constexpr (sizeof(C) == 1) {
                page = sequence.page(token);
                read_scales(keys.scale, k_scale, problem.ks_page, problem.ks_head);
                read_scales(values.scale, v_scale, problem.vs_page, problem.vs_head);
            }
            mbarrier_wait(&full[stage], parity);
            float scores[2][4];
            unsigned weights[Tiling::ROW_TILES][2];
            ring[stage].read(keys);
            warp.multiply(scores, keys);
            ring[stage].read(values);
            __syncwarp();  // all lanes have read: the stage is free
            if (++stage == STAGES) stage = 0, parity ^= 1;
            ask();
            if (token + CHUNK > length) values.forget(length - token);
            warp.weigh(weights, scores, keys.scale, values.scale, token, token + CHUNK <= length - problem.queries + 1, problem.scale);
            warp.add(weights, values);
        }
        __syncthreads();  // the rings are empty
        meeting.put(warp, rows);
        __syncthreads();
        settle(meeting, tiles, item, tile, until, rows, out + problem.out_row(sequence.batch, sequence.head, first_row) * HEAD_DIM,
               Parts{parts, part_stats, arrived});
        fence_proxy_async_shared();  // the copy engine writes next where the warps have met
        __syncthreads();
        tile = until;
    }
}
