// Attention, v3: tiled. One block owns 128 queries and walks over the keys in tiles; everything between q k^T and the output stays
// in shared memory and registers. This is flash attention (Dao et al., 2022) on ordinary FMA units.
//   Idea      K and V are read once for 128 queries, not once for each (v2): 128 times fewer bytes. Inside, each thread computes a
//             patch of 8 x 8 scores, so that 4 loads from shared memory feed 64 multiplications.
//   Predicts  4 * S^2 * head_dim FLOPs a head against S^2 * head_dim / 16 bytes: bound by FP32 arithmetic at every length.
//             S=4096, d=128, 32 heads: 275 GFLOP, 5.4 ms at the measured ceiling of 50.9 TFLOP/s; exp and copies come on top.
//   Measured  data/measured/h200/attention.csv: float32, S=4096, d=128, 32 heads: v2 54.9 ms -> v3 6.61 ms.
//   Wastes    The tensor cores, which multiply 8 to 14 times as fast; half of each tile on the causal diagonal; nearly all of a
//             tile when there is one query, as in decoding.
#include <math_constants.h>

#include "strides.cuh"
#include "vector.cuh"
#include "warp.cuh"

constexpr int DEPTH = 16;  // K and V come to shared memory in slices: 16 columns of a K tile, 16 rows of a V tile
constexpr int ROWS = 8;    // that a thread works on. A warp is 2 x 16 threads and owns 16 queries.
constexpr float LOG2_E = 1.4426950408889634f;

// What the block shares. What a product takes from the left, and K, lie transposed: neighbours in memory are then neighbours in the
// patch of a thread. The padding spreads the words that a transposing warp writes over more banks.
template <int HEAD_DIM, int BLOCK_Q, int BLOCK_K>
struct Shared {
    float q[HEAD_DIM][BLOCK_Q + 4];
    float weight[BLOCK_K][BLOCK_Q + 4];
    union {
        float k[DEPTH][BLOCK_K + 4];
        float v[DEPTH][HEAD_DIM];
    } slice[2];  // one is computed with while the other is filled
};

// A piece of a (rows, cols) matrix on its way from global to shared memory: PIECE_ROWS x PIECE_COLS elements in the registers of
// THREADS threads. Neighbouring threads hold the vectors of LANE_ROWS rows: 1 to write rows to shared memory as they are, 16 to write
// them transposed without bank conflicts. WIDTH is 4 where each row of the matrix lies on a multiple of 4 elements and cols is a
// multiple of 4; else 1. Elements outside of the matrix are 0.
template <class T, int PIECE_ROWS, int PIECE_COLS, int LANE_ROWS, int THREADS, int WIDTH>
struct Piece {
    static constexpr int VECTORS = PIECE_ROWS * PIECE_COLS / 4;
    static constexpr int COUNT = (VECTORS + THREADS - 1) / THREADS;
    // The arithmetic between `load` and `store` hides the latency. So `load` must not look at what it asked for: the vectors are words
    // of 32 bits until `store` takes them apart.
    Vector<unsigned, sizeof(T)> words[COUNT];

    __device__ static int row(int i) {
        const int index = threadIdx.x + i * THREADS;
        return index % LANE_ROWS + index / (LANE_ROWS * PIECE_COLS / 4) * LANE_ROWS;
    }
    __device__ static bool outside(int i) { return VECTORS % THREADS != 0 && threadIdx.x + i * THREADS >= VECTORS; }
    __device__ static int col(int i) { return (threadIdx.x + i * THREADS) / LANE_ROWS % (PIECE_COLS / 4) * 4; }

    __device__ void load(const T* matrix, long long stride, int rows, int cols, int first_row, int first_col) {
        matrix += first_row * stride + first_col;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            if (outside(i)) continue;
            const T* source = matrix + (row(i) * (int)stride + col(i));
            const int rest = first_row + row(i) < rows ? cols - first_col - col(i) : 0;
            words[i] = {};
            if (WIDTH == 4) {
                if (rest > 0) words[i] = *reinterpret_cast<const Vector<unsigned, sizeof(T)>*>(source);
            } else {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    if (rest > j) reinterpret_cast<T*>(&words[i])[j] = source[j];
                }
            }
        }
    }

    template <int STRIDE>
    __device__ void store(float (*target)[STRIDE]) const {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            if (outside(i)) continue;
            float values[4];
            load_vector(reinterpret_cast<const T*>(&words[i]), values);
            store_vector(&target[row(i)][col(i)], values);
        }
    }

    template <int STRIDE>
    __device__ void store_transposed(float (*target)[STRIDE], float factor = 1.0f) const {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            if (outside(i)) continue;
#pragma unroll
            for (int j = 0; j < 4; ++j) target[col(i) + j][row(i)] = factor * to_float(reinterpret_cast<const T*>(&words[i])[j]);
        }
    }
};

// Where in a tile the patch of a thread lies: 8 rows of the 16 of its warp, and every 16th vector of the columns.
template <int COLS>
struct Patch {
    static constexpr int VECTOR = COLS % 4 == 0 ? 4 : 2;
    // Lanes are 2 * x + y, not 16 * y + x: so each half of the warp reads 2 vectors of the left and 8 of the right, without conflict.
    __device__ static int row(int i) { return threadIdx.x / 32 * 16 + threadIdx.x % 2 * 4 + i / 4 * 8 + i % 4; }
    __device__ static int col(int j) { return threadIdx.x % 32 / 2 * VECTOR + j / VECTOR * VECTOR * 16 + j % VECTOR; }
};

// sum += left^T right over one slice. left: DEPTH rows of the tile's rows, right: DEPTH rows of the tile's columns.
template <int COLS, int LEFT_STRIDE, int RIGHT_STRIDE>
__device__ void multiply(float (&sum)[ROWS][COLS], const float (*left)[LEFT_STRIDE], const float (*right)[RIGHT_STRIDE]) {
    constexpr int VECTOR = Patch<COLS>::VECTOR;
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
        float a[ROWS / 4][4], b[COLS / VECTOR][VECTOR];
#pragma unroll
        for (int i = 0; i < ROWS / 4; ++i) load_vector(&left[d][Patch<COLS>::row(4 * i)], a[i]);
#pragma unroll
        for (int j = 0; j < COLS / VECTOR; ++j) load_vector(&right[d][Patch<COLS>::col(VECTOR * j)], b[j]);
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
#pragma unroll
            for (int j = 0; j < COLS; ++j) sum[i][j] += a[i / 4][i % 4] * b[j / VECTOR][j % VECTOR];
        }
    }
}

// out = softmax(scale * q k^T) v. out: (batch, heads, seq, head_dim), contiguous; k and v have heads / group heads.
// causal: query i sees the keys up to i + kv_len - seq_len; a query that sees none gets zeros.
// HEAD_DIM is head_dim or more, a multiple of 32. Launch BLOCK_Q * 2 threads, a grid of (heads, batch, ceil(seq_len / BLOCK_Q)), and
// sizeof(Shared<HEAD_DIM, BLOCK_Q, BLOCK_K>) bytes of shared memory.
template <class T, int HEAD_DIM, int BLOCK_Q, int BLOCK_K, int WIDTH>
__global__ void __launch_bounds__(BLOCK_Q * 2, 128 / BLOCK_Q)  // 256 threads a multiprocessor, of up to 255 registers
attention_tiled(const T* q, const T* k, const T* v, T* out, Strides q_strides, Strides k_strides, Strides v_strides, int seq_len,
                int kv_len, int head_dim, int group, bool causal, float scale) {
    constexpr int THREADS = BLOCK_Q * 2;
    constexpr int SCORES = BLOCK_K / 16, OUTPUTS = HEAD_DIM / 16;  // columns of a thread's patches
    using ScorePatch = Patch<SCORES>;
    using OutputPatch = Patch<OUTPUTS>;

    extern __shared__ __align__(16) unsigned char shared_bytes[];
    auto& shared = *reinterpret_cast<Shared<HEAD_DIM, BLOCK_Q, BLOCK_K>*>(shared_bytes);

    // Blocks start in the order x, y, z. Under a causal mask the last queries have the most to do: those of all heads come first, so
    // that what is left for the end, when multiprocessors fall idle, is short.
    const int head = blockIdx.x, batch = blockIdx.y, first_query = (gridDim.z - 1 - blockIdx.z) * BLOCK_Q;
    q = head_matrix(q, q_strides, batch, head);
    k = head_matrix(k, k_strides, batch, head / group);
    v = head_matrix(v, v_strides, batch, head / group);
    out += (batch * (long long)gridDim.x + head) * seq_len * head_dim;

    {
        Piece<T, BLOCK_Q, HEAD_DIM, 16, THREADS, WIDTH> piece;
        piece.load(q, q_strides.seq, seq_len, head_dim, first_query, 0);
        piece.store_transposed(shared.q, scale * LOG2_E);  // scores come out in units of log 2: exp2 is what the hardware has
    }
    Piece<T, BLOCK_K, DEPTH, 16, THREADS, WIDTH> next_k;
    Piece<T, DEPTH, HEAD_DIM, 1, THREADS, WIDTH> next_v;
    int slice = 0;
    next_k.load(k, k_strides.seq, kv_len, head_dim, 0, 0);
    next_k.store_transposed(shared.slice[0].k);
    __syncthreads();

    float output[ROWS][OUTPUTS] = {}, max[ROWS], sum[ROWS];  // sum: of this thread's own columns until the very end
#pragma unroll
    for (int i = 0; i < ROWS; ++i) max[i] = -CUDART_INF_F, sum[i] = 0.0f;

    const int shift = kv_len - seq_len;
    const int keys_seen = causal ? min(kv_len, first_query + BLOCK_Q + shift) : kv_len;  // by any query of the block
    for (int first_key = 0; first_key < keys_seen; first_key += BLOCK_K) {
        float score[ROWS][SCORES] = {};
        for (int depth = 0; depth < head_dim; depth += DEPTH) {
            const bool last = depth + DEPTH >= head_dim;
            if (last) next_v.load(v, v_strides.seq, kv_len, head_dim, first_key, 0);
            else next_k.load(k, k_strides.seq, kv_len, head_dim, first_key, depth + DEPTH);
            multiply(score, shared.q + depth, shared.slice[slice].k);
            slice ^= 1;
            if (last) next_v.store(shared.slice[slice].v);
            else next_k.store_transposed(shared.slice[slice].k);
            __syncthreads();
        }

        // Online softmax, a row at a time. The 16 threads of a row are in one warp, and so is all that reads their weights.
        if (first_key + BLOCK_K > (causal ? min(kv_len, first_query + shift + 1) : kv_len)) {  // some query must not see some key
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const int visible = causal ? min(kv_len, first_query + ScorePatch::row(i) + shift + 1) : kv_len;
#pragma unroll
                for (int j = 0; j < SCORES; ++j) {
                    if (first_key + ScorePatch::col(j) >= visible) score[i][j] = -CUDART_INF_F;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            float new_max = max[i];
#pragma unroll
            for (int j = 0; j < SCORES; ++j) new_max = fmaxf(new_max, score[i][j]);
#pragma unroll
            for (int distance = 16; distance > 1; distance /= 2) new_max = fmaxf(new_max, __shfl_xor_sync(FULL_WARP, new_max, distance));

            const float base = new_max == -CUDART_INF_F ? 0.0f : new_max;  // no key seen yet: -inf - -inf would be NaN
            const float correction = exp2f(max[i] - base);
            max[i] = new_max;
            sum[i] *= correction;
#pragma unroll
            for (int j = 0; j < SCORES; ++j) {
                score[i][j] = exp2f(score[i][j] - base);
                sum[i] += score[i][j];
            }
#pragma unroll
            for (int j = 0; j < OUTPUTS; ++j) output[i][j] *= correction;
        }
#pragma unroll
        for (int j = 0; j < SCORES; ++j) {
#pragma unroll
            for (int i = 0; i < ROWS; i += 4) {
                const float column[4] = {score[i][j], score[i + 1][j], score[i + 2][j], score[i + 3][j]};
                store_vector(&shared.weight[ScorePatch::col(j)][ScorePatch::row(i)], column);
            }
        }
        __syncwarp();

        const int keys = min(BLOCK_K, keys_seen - first_key);
        for (int key = 0; key < keys; key += DEPTH) {
            const bool last = key + DEPTH >= keys;
            if (last) next_k.load(k, k_strides.seq, kv_len, head_dim, first_key + BLOCK_K, 0);
            else next_v.load(v, v_strides.seq, kv_len, head_dim, first_key + key + DEPTH, 0);
            multiply(output, shared.weight + key, shared.slice[slice].v);
            slice ^= 1;
            if (last) next_k.store_transposed(shared.slice[slice].k);
            else next_v.store(shared.slice[slice].v);
            __syncthreads();
        }
    }

#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
        for (int distance = 16; distance > 1; distance /= 2) sum[i] += __shfl_xor_sync(FULL_WARP, sum[i], distance);
        const float factor = sum[i] == 0.0f ? 0.0f : 1.0f / sum[i];
        const int row = first_query + OutputPatch::row(i);
        if (row >= seq_len) continue;
#pragma unroll
        for (int j = 0; j < OUTPUTS; j += OutputPatch::VECTOR) {
            const int col = OutputPatch::col(j);
            float values[OutputPatch::VECTOR];
#pragma unroll
            for (int u = 0; u < OutputPatch::VECTOR; ++u) values[u] = output[i][j + u] * factor;
            T* target = out + row * (long long)head_dim + col;
            if (WIDTH == 4) {
                if (col < head_dim) store_vector(target, values);
            } else {
#pragma unroll
                for (int u = 0; u < OutputPatch::VECTOR; ++u) {
                    if (col + u < head_dim) target[u] = from_float<T>(values[u]);
                }
            }
        }
    }
}
