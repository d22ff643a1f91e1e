// Decode attention, v5: a ring of tokens in shared memory for each warp, so that more bytes are on their way.
//   Idea      v4 asks for as much as its registers hold: 8 KB a warp, and while it multiplies only half of that. cp.async brings tokens to shared
//             memory instead, a multiprocessor has 227 KB of it: each warp has a ring of stages of 16 tokens of its own, asks for the tokens STAGES
//             stages ahead as soon as it is done with a stage, and waits for nobody but its own copies. Rows are stored with their 16-byte pieces
//             turned round by where they lie (swizzled), so that no lanes of one read meet in a bank.
//   Predicts  16 KB and more a warp on their way, 190 KB a multiprocessor, in place of 80: 5.6 us of the bandwidth, what a loaded memory needs.
//             Shared memory is written and read once, 128 of each 436 cycles.
//   Measured  data/measured/h200/decode_attention.csv
//   Wastes    At the end of a head's tokens a block's rings run empty before the next head's begin to fill; another block of the multiprocessor
//             must bridge that.
#include "cp_async.cuh"
#include "parts.cuh"

// One stage: 16 keys and 16 values of HEAD_DIM elements, and their scales.
template <class C, int HEAD_DIM>
struct alignas(16) Stage {
    static constexpr int PIECES = HEAD_DIM * sizeof(C) / 16;  // of a row
    uint4 keys[CHUNK][PIECES], values[CHUNK][PIECES];
    float key_scales[sizeof(C) == 1 ? CHUNK : 4], value_scales[sizeof(C) == 1 ? CHUNK : 4];

    // Where piece p of row r lies. Eight neighbouring lanes read 4 pieces of 2 keys that follow each other, or 2 pieces of 4 values, every second one.
    static __device__ __forceinline__ int key_place(int r, int p) { return PIECES >= 8 ? p ^ (r % 2 * 4) : p; }
    static __device__ __forceinline__ int value_place(int r, int p) { return PIECES >= 8 ? p ^ (r / 2 % 4 * 2) : p; }

    // The warp's lanes begin to copy; rows from `valid` on repeat the last one.
    __device__ __forceinline__ void copy(const C* k, const C* v, const float* k_scale, const float* v_scale, const Sequence& sequence, int token, long long page,
                                         int valid, const Problem& p) {
        const int lane = lane_id(), offset = sequence.offset(token);
        const C* key = k + page * p.k_page + sequence.head * p.k_head + offset * p.k_token;
        const C* value = v + page * p.v_page + sequence.head * p.v_head + offset * p.v_token;
#pragma unroll
        for (int i = 0; i < CHUNK * PIECES / 32; ++i) {
            const int row = (lane + 32 * i) / PIECES, piece = (lane + 32 * i) % PIECES, from = min(row, valid - 1);
            cp_async_l2(&keys[row][key_place(row, piece)], key + from * p.k_token + piece * (16 / sizeof(C)));
        }
#pragma unroll
        for (int i = 0; i < CHUNK * PIECES / 32; ++i) {
            const int row = (lane + 32 * i) / PIECES, piece = (lane + 32 * i) % PIECES, from = min(row, valid - 1);
            cp_async_l2(&values[row][value_place(row, piece)], value + from * p.v_token + piece * (16 / sizeof(C)));
        }
        if constexpr (sizeof(C) == 1) {
            const int row = lane % CHUNK, from = offset + min(row, valid - 1);
            if (lane < CHUNK) cp_async<4>(&key_scales[row], k_scale + page * p.ks_page + sequence.head * p.ks_head + from);
            else cp_async<4>(&value_scales[row], v_scale + page * p.vs_page + sequence.head * p.vs_head + from);
        }
    }
    __device__ __forceinline__ void read(Keys<C, HEAD_DIM>& into) const {
        using Cut = ::Cut<C, HEAD_DIM>;
        const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < Cut::K_LOADS; ++j) {
                const uint4 words = keys[g + 8 * i][key_place(g, t + 4 * j)];
                into.words[i][j][0] = words.x, into.words[i][j][1] = words.y, into.words[i][j][2] = words.z, into.words[i][j][3] = words.w;
            }
        if constexpr (sizeof(C) == 1)
#pragma unroll
            for (int i = 0; i < 4; ++i) into.scale[i / 2][i % 2] = key_scales[8 * (i / 2) + 2 * t + i % 2];
    }
    __device__ __forceinline__ void read(Values<C, HEAD_DIM>& into) const {
        using Cut = ::Cut<C, HEAD_DIM>;
        const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = 8 * (i / 2) + 2 * t + i % 2;
#pragma unroll
            for (int j = 0; j < Cut::V_LOADS; ++j) {
                if constexpr (Cut::V_WORDS == 4) {
                    const uint4 words = values[row][value_place(row, g + 8 * j)];
                    into.words[i][j][0] = words.x, into.words[i][j][1] = words.y, into.words[i][j][2] = words.z, into.words[i][j][3] = words.w;
                } else {
                    const uint2 words = reinterpret_cast<const uint2*>(values[row])[2 * value_place(row, g / 2) + g % 2];
                    into.words[i][j][0] = words.x, into.words[i][j][1] = words.y;
                }
            }
            if constexpr (sizeof(C) == 1) into.scale[i / 2][i % 2] = value_scales[row];
        }
    }
};

// As decode_tensor_cores of v4. STAGES: of each warp's ring.
template <class T, class C, class Tiling, int STAGES>
__global__ void __launch_bounds__(Tiling::THREADS, Tiling::BLOCKS)
    decode_ring(const T* q, const C* k, const C* v, const float* k_scale, const float* v_scale, const int* lengths, const int* block_table, T* out,
                float4* parts, float2* part_stats, unsigned* arrived, int resident, int least_tiles, Problem problem) {
    constexpr int HEAD_DIM = Tiling::HEAD_DIM, ROWS = Tiling::ROWS, TILE = Tiling::TILE;
    extern __shared__ float4 shared[];
    auto& meeting = *reinterpret_cast<Meeting<T, C, Tiling>*>(shared);  // once the rings are empty
    Stage<C, HEAD_DIM>* ring = reinterpret_cast<Stage<C, HEAD_DIM>*>(shared) + warp_id() * STAGES;
    const int row_blocks = (problem.rows() + ROWS - 1) / ROWS, block = blockIdx.x;
    const Tiles<TILE> tiles(lengths, problem.batch, problem.kv_heads * row_blocks, resident, least_tiles);
    if (block >= tiles.blocks) return;

    const int end = tiles.first(block + 1);
    for (int tile = tiles.first(block); tile < end;) {
        const auto item = tiles.find(tile);
        const Sequence sequence(block_table, problem, item.batch, item.head / row_blocks);
        const int first_row = item.head % row_blocks * ROWS, rows = min(ROWS, problem.rows() - first_row), until = min(item.end, end);
        const int length = item.length, end_token = min(length, (until - item.first) * TILE);
        int token = (tile - item.first) * TILE + CHUNK * warp_id(), ahead = token, next_stage = 0;
        long long page = ahead < end_token ? sequence.page(ahead) : 0;  // of `ahead`, asked for one stage early
        const auto ask = [&](Stage<C, HEAD_DIM>& stage) {
            const long long its_page = page;
            const int its_token = ahead;
            ahead += TILE;
            if (ahead < end_token) page = sequence.page(ahead);
            if (its_token < end_token) stage.copy(k, v, k_scale, v_scale, sequence, its_token, its_page, min(CHUNK, length - its_token), problem);
            cp_async_commit();
        };
#pragma unroll
        for (int i = 0; i < STAGES; ++i) ask(ring[i]);
        Warp<T, C, Tiling> warp;
        warp.begin(q, sequence, first_row, length, problem);
        for (; token < end_token; token += TILE) {
            Stage<C, HEAD_DIM>& stage = ring[next_stage];
            next_stage = next_stage + 1 == STAGES ? 0 : next_stage + 1;
            cp_async_wait<STAGES - 1>();
            __syncwarp();
            float scores[2][4];
            unsigned weights[Tiling::ROW_TILES][2];
            Keys<C, HEAD_DIM> keys;
            stage.read(keys);
            warp.multiply(scores, keys);
            Values<C, HEAD_DIM> values;
            stage.read(values);
            __syncwarp();  // all lanes have read: the stage is free
            ask(stage);
            warp.weigh(weights, scores, keys.scale, values.scale, token, token + CHUNK <= length - problem.queries + 1, problem.scale);
            warp.add(weights, values);
        }
        cp_async_wait_all();
        __syncthreads();  // the rings are empty
        meeting.put(warp, rows);
        __syncthreads();
        settle(meeting, tiles, item, tile, until, rows, out + problem.out_row(sequence.batch, sequence.head, first_row) * HEAD_DIM,
               Parts{parts, part_stats, arrived});
        __syncthreads();
        tile = until;
    }
}
