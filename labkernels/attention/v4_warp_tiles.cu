// Attention, v4: warp tiles. A warp owns 16 queries and meets the block's other warps only where a tile of keys or values changes hands.
//   Idea      v3 moves K and V through registers, transposes K on the way and stops all warps every 16 columns. Here cp.async carries whole
//             tiles to shared memory, as they are, while the warps compute: K of the next tile under the weights times V, V under q k^T.
//             No transposition is needed if a thread multiplies along the rows: 4 neighbours of a query by 4 neighbours of a key, one
//             vector each, for a patch of 8 x 8 scores. The softmax, its statistics and the weights stay within the warp.
//   Predicts  The same 4 * S^2 * head_dim FLOPs and the same 4 vector loads for 64 multiplications as v3, but 2 barriers instead of 16 for
//             128 keys, no instruction spent on carrying K and V, and no warp that works on keys that only the others may see.
//   Measured  data/measured/h200/attention.csv, float32, 32 heads, S = 4096: 6.61 -> 6.58 ms at head_dim 128, causal 3.36 -> 3.35 ms; at head_dim
//             64 3.74 -> 3.63 ms. So the barriers were a small loss: both are bound by FMAs, which reach 82% of the limit.
//   Wastes    The tensor cores, still. The weights cross shared memory for the sake of the layout alone: each thread has 8 columns of 8
//             rows and needs all columns of them. Tensor cores have the same question and answer it in registers (v5).
// Also here, and in all that follow: windows, masks, packed sequences and the log-sum-exp, by the rules of visible.cuh.
#include "approx.cuh"
#include "cp_async.cuh"
#include "opaque.cuh"
#include "strides.cuh"
#include "vector.cuh"
#include "visible.cuh"
#include "warp.cuh"

constexpr int WARP_QUERIES = 16;  // a lane has 8 of them, and every 16th key
constexpr int ROWS = WARP_QUERIES / 2;
constexpr int CHUNK = 32;  // keys whose weights a warp writes down at once
constexpr float LN_2 = 0.69314718055994531f;

// What the block shares. The padding puts the same columns of neighbouring rows of Q and K into different banks, and those of two
// neighbouring rows of the weights 16 banks apart.
template <class T, int HEAD_DIM, int WARPS, int BLOCK_K>
struct Shared {
    float q[WARPS * WARP_QUERIES][HEAD_DIM + 4];
    float weight[WARPS][WARP_QUERIES][CHUNK + 16];
    T k[BLOCK_K][HEAD_DIM + 16 / sizeof(T)];
    T v[BLOCK_K][HEAD_DIM];
};

// Start to copy BLOCK_K rows of a matrix of `rows` rows, from first_row on; what lies outside of the matrix becomes 0. WIDTH is the number
// of elements in 16 bytes if all rows lie on multiples of them, else 1: then the copy is over when the function returns.
// A thread has the same columns of every row it copies.
template <int HEAD_DIM, int THREADS, int WIDTH, int BLOCK_K, int STRIDE, class T>
__device__ void start_copy(T (&target)[BLOCK_K][STRIDE], const T* matrix, long long stride, int first_row, int rows, int head_dim) {
    constexpr int VECTOR = 16 / sizeof(T), ACROSS = HEAD_DIM / VECTOR, DOWN = THREADS / ACROSS;
    const int col = threadIdx.x % ACROSS * VECTOR, own_row = threadIdx.x / ACROSS;
    if (own_row >= DOWN) return;
    matrix += (first_row + own_row) * stride + col;
    if (WIDTH == VECTOR && first_row + BLOCK_K <= rows && head_dim == HEAD_DIM) {  // as nearly always: nothing to be asked for each row
#pragma unroll
        for (int i = 0; i < (BLOCK_K + DOWN - 1) / DOWN; ++i) {
            const int row = own_row + i * DOWN;
            if (BLOCK_K % DOWN == 0 || row < BLOCK_K) cp_async_l2(&target[row][col], matrix + i * (DOWN * stride));
        }
        return;
    }
    for (int row = own_row; row < BLOCK_K; row += DOWN, matrix += DOWN * stride) {
        const int elements = first_row + row < rows ? head_dim - col : 0;
        if (WIDTH == VECTOR && elements > 0) cp_async_l2(&target[row][col], matrix);
#pragma unroll
        for (int u = 0; u < VECTOR; ++u) {
            if (WIDTH != VECTOR || elements <= 0) target[row][col + u] = u < elements ? matrix[u] : from_float<T>(0.0f);
        }
    }
}

// out = softmax(scale * q k^T + mask) v, and lse, if it is not null, the natural logarithm of the softmax's denominator.
// Of q, k, v, out and lse a head's rows lie `strides.seq` apart; q, k, v and out have neighbouring elements in a row, and k and v
// heads / group heads. window_left, window_right, the mask and cu_seqlens (null: not packed) are those of visible.cuh.
// HEAD_DIM is head_dim or more, a multiple of 32; BLOCK_K is 32, 64 or 128. Launch WARPS warps, a grid of (heads, batch, query blocks of
// 16 * WARPS), and sizeof(Shared<T, HEAD_DIM, WARPS, BLOCK_K>) bytes of shared memory.
template <class T, int HEAD_DIM, int WARPS, int BLOCK_K, int WIDTH, int MASK>
__global__ void __launch_bounds__(WARPS * 32, 1)
attention_warp_tiles(const T* q, const T* k, const T* v, T* out, float* lse, Strides q_strides, Strides k_strides, Strides v_strides,
                     Strides out_strides, Strides lse_strides, const void* mask_values, MaskStrides mask_strides, const int* cu_seqlens_q,
                     const int* cu_seqlens_k, int seq_len, int kv_len, int head_dim, int group, int window_left, int window_right,
                     float scale) {
    constexpr int THREADS = WARPS * 32, BLOCK_Q = WARPS * WARP_QUERIES;
    constexpr int SCORES = BLOCK_K / 16, OUTPUTS = HEAD_DIM / 16;  // columns of a thread's patches
    constexpr int VECTOR = OUTPUTS % 4 == 0 ? 4 : 2;
    constexpr int UNROLL = sizeof(T) == 4 && HEAD_DIM <= 128 ? 2 : 1;  // steps of the two products at once, as far as registers go
    using Tile = Shared<T, HEAD_DIM, WARPS, BLOCK_K>;

    extern __shared__ __align__(16) unsigned char shared_bytes[];
    auto& shared = *reinterpret_cast<Tile*>(shared_bytes);

    // The last queries, which have the most to do under a causal mask, come first: what is left for the end is short.
    const int head = blockIdx.x, batch = blockIdx.y, first_query = (gridDim.z - 1 - blockIdx.z) * BLOCK_Q;
    const Bounds bounds = bounds_of(cu_seqlens_q, cu_seqlens_k, batch, seq_len, kv_len);
    if (first_query >= bounds.seq_len) return;
    const Window window(bounds.seq_len, bounds.kv_len, window_left, window_right);
    q = head_matrix(q, q_strides, batch, head) + bounds.first_query * q_strides.seq;
    k = head_matrix(k, k_strides, batch, head / group) + bounds.first_key * k_strides.seq;
    v = head_matrix(v, v_strides, batch, head / group) + bounds.first_key * v_strides.seq;
    out = head_matrix(out, out_strides, batch, head) + bounds.first_query * out_strides.seq;
    const Mask<MASK, T> mask(mask_values, mask_strides, batch, head);

    // Lane 2 * x + y has the queries y, y + 2, ... of its warp and the keys x, x + 16, ... of a tile: so each half of the warp reads two
    // vectors of Q and eight of K at a time, without conflict.
    const int warp = threadIdx.x / 32, x = threadIdx.x % 32 / 2, y = threadIdx.x % 2;
    const int warp_query = first_query + warp * WARP_QUERIES;

    for (int i = threadIdx.x; i < BLOCK_Q * HEAD_DIM; i += THREADS) {
        const int row = i / HEAD_DIM, col = i % HEAD_DIM;
        const bool inside = first_query + row < window.seq_len && col < head_dim;
        const float value = inside ? to_float(q[(first_query + row) * q_strides.seq + col]) : 0.0f;
        shared.q[row][col] = value * (scale * LOG2_OF_E);  // scores come out in units of log 2: exp2 is what the hardware has
    }

    const Tiles tiles = window.template keys<BLOCK_Q, BLOCK_K>(first_query);
    Tiles mine = {0, 0};  // some warps have no queries, and all have fewer keys than the block
    int first_seen = 0, end_seen = 0;
    if (warp_query < window.seq_len) {
        mine = window.template keys<WARP_QUERIES, BLOCK_K>(warp_query);
        first_seen = window.first_key(warp_query);
        end_seen = window.end_key(min(warp_query + WARP_QUERIES, window.seq_len) - 1);
    }

    float output[ROWS][OUTPUTS] = {}, max[ROWS], sum[ROWS];  // sum: of this thread's own columns until the very end
#pragma unroll
    for (int i = 0; i < ROWS; ++i) max[i] = -CUDART_INF_F, sum[i] = 0.0f;

    if (tiles.first < tiles.end) {
        start_copy<HEAD_DIM, THREADS, WIDTH>(shared.k, k, k_strides.seq, tiles.first * BLOCK_K, window.kv_len, head_dim);
    }
    for (int tile = tiles.first; tile < tiles.end; ++tile) {
        const int first_key = tile * BLOCK_K;
        const bool busy = tile >= mine.first && tile < mine.end;
        float score[ROWS][SCORES] = {};

        cp_async_wait_all();
        __syncthreads();  // K has come; nobody reads V any more
        start_copy<HEAD_DIM, THREADS, WIDTH>(shared.v, v, v_strides.seq, first_key, window.kv_len, head_dim);
        if (busy) {
#pragma unroll UNROLL
            for (int d = 0; d < HEAD_DIM; d += 4) {
                float key[SCORES][4];
#pragma unroll
                for (int j = 0; j < SCORES; ++j) load_vector(&shared.k[x + 16 * j][d], key[j]);
#pragma unroll
                for (int i = 0; i < ROWS; ++i) {
                    float query[4];
                    load_vector(&shared.q[warp * WARP_QUERIES + 2 * i + y][d], query);
#pragma unroll
                    for (int u = 0; u < 4; ++u) {
#pragma unroll
                        for (int j = 0; j < SCORES; ++j) score[i][j] += query[u] * key[j][u];
                    }
                }
            }

            if (MASK != MASK_NONE || window.template hides<WARP_QUERIES, BLOCK_K>(warp_query, first_key)) {
                const int own_query = opaque(warp_query + y);  // there are no registers to keep the addresses of 8 rows of a mask
#pragma unroll
                for (int i = 0; i < ROWS; ++i) {
                    const int query = own_query + 2 * i;
#pragma unroll
                    for (int j = 0; j < SCORES; ++j) {
                        const int key = first_key + x + 16 * j;
                        score[i][j] = window.sees(query, key) ? mask.apply(score[i][j], query, key) : -CUDART_INF_F;
                    }
                }
            }
            // Online softmax, a row at a time: the 16 lanes of a row agree on its maximum.
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                float new_max = max[i];
#pragma unroll
                for (int j = 0; j < SCORES; ++j) new_max = fmaxf(new_max, score[i][j]);
#pragma unroll
                for (int distance = 16; distance > 1; distance /= 2) {
                    new_max = fmaxf(new_max, __shfl_xor_sync(FULL_WARP, new_max, distance));
                }
                const float base = new_max == -CUDART_INF_F ? 0.0f : new_max;  // no key seen yet: -inf - -inf would be NaN
                const float correction = exp2_approx(max[i] - base);
                max[i] = new_max;
                sum[i] *= correction;
#pragma unroll
                for (int j = 0; j < SCORES; ++j) {
                    score[i][j] = exp2_approx(score[i][j] - base);
                    sum[i] += score[i][j];
                }
#pragma unroll
                for (int j = 0; j < OUTPUTS; ++j) output[i][j] *= correction;
            }
        }

        cp_async_wait_all();
        __syncthreads();  // V has come; nobody reads K any more
        if (tile + 1 < tiles.end) {
            start_copy<HEAD_DIM, THREADS, WIDTH>(shared.k, k, k_strides.seq, first_key + BLOCK_K, window.kv_len, head_dim);
        }
        if (!busy) continue;
#pragma unroll
        for (int chunk = 0; chunk < BLOCK_K / CHUNK; ++chunk) {
            const int chunk_key = first_key + chunk * CHUNK;
            if (chunk_key + CHUNK <= first_seen || chunk_key >= end_seen) continue;
            auto& weight = shared.weight[warp];
            __syncwarp();  // the last chunk's weights have been read
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                weight[2 * i + y][x] = score[i][2 * chunk];
                weight[2 * i + y][x + 16] = score[i][2 * chunk + 1];
            }
            __syncwarp();
#pragma unroll UNROLL
            for (int key = 0; key < CHUNK; key += 4) {
                float value[4][OUTPUTS / VECTOR][VECTOR];
#pragma unroll
                for (int u = 0; u < 4; ++u) {
#pragma unroll
                    for (int j = 0; j < OUTPUTS / VECTOR; ++j) {
                        load_vector(&shared.v[chunk * CHUNK + key + u][VECTOR * (x + 16 * j)], value[u][j]);
                    }
                }
#pragma unroll
                for (int i = 0; i < ROWS; ++i) {
                    float factor[4];
                    load_vector(&weight[2 * i + y][key], factor);
#pragma unroll
                    for (int u = 0; u < 4; ++u) {
#pragma unroll
                        for (int j = 0; j < OUTPUTS; ++j) output[i][j] += factor[u] * value[u][j / VECTOR][j % VECTOR];
                    }
                }
            }
        }
    }

#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
        for (int distance = 16; distance > 1; distance /= 2) sum[i] += __shfl_xor_sync(FULL_WARP, sum[i], distance);
        const float factor = sum[i] == 0.0f ? 0.0f : 1.0f / sum[i];
        const int query = warp_query + 2 * i + y;
        if (query >= window.seq_len) continue;
        if (lse != nullptr && x == 0) {
            const long long first = batch * lse_strides.batch + head * lse_strides.head + bounds.first_query;
            lse[first + query] = LN_2 * (max[i] + log2f(sum[i]));
        }
#pragma unroll
        for (int j = 0; j < OUTPUTS / VECTOR; ++j) {
            const int col = VECTOR * (x + 16 * j);
            T* target = out + query * out_strides.seq + col;
            float values[VECTOR];
#pragma unroll
            for (int u = 0; u < VECTOR; ++u) values[u] = output[i][VECTOR * j + u] * factor;
            if (WIDTH > 1) {
                if (col < head_dim) store_vector(target, values);
            } else {
#pragma unroll
                for (int u = 0; u < VECTOR; ++u) {
                    if (col + u < head_dim) target[u] = from_float<T>(values[u]);
                }
            }
        }
    }
}
