// Attention, v1: naive. Three kernels, as the formula is written, with the N x N matrix of scores in memory between them.
//   Idea      scores = scale * q k^T; a softmax of each row; out = scores v. One thread a score, one warp a row, one thread an
//             element of the output.
//   Predicts  The scores are written twice and read at least twice, 16 bytes a pair of query and key. At S=4096 with 32 heads the
//             matrix takes 2.1 GB, and 4 times as much at each doubling of S.
//   Measured  data/measured/h200/attention.csv: float32, S=4096, d=128, 32 heads: 298 ms.
//   Wastes    Memory, all of it. And each thread reads a whole row of q and of k for one score: 8 bytes for 2 FLOPs.
#include <math_constants.h>

#include "convert.cuh"
#include "warp.cuh"

// scores[z][i][j] = scale * q[z][i] . k[z / group][j], or -inf where query i must not see key j. All tensors are contiguous; z
// counts batch * heads, and k and v have 1 / group of them. Launch with one thread a score: x is the key, y the query, z the head.
template <class T>
__global__ void attention_scores(const T* q, const T* k, float* scores, int seq_len, int kv_len, int head_dim, int group, bool causal,
                                 float scale) {
    const int key = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = blockIdx.y * blockDim.y + threadIdx.y;
    const long long z = blockIdx.z;
    if (row >= seq_len || key >= kv_len) return;
    q += (z * seq_len + row) * head_dim;
    k += (z / group * kv_len + key) * head_dim;

    float score = 0.0f;
    for (int d = 0; d < head_dim; ++d) score += to_float(q[d]) * to_float(k[d]);
    const bool visible = !causal || key <= row + kv_len - seq_len;
    scores[(z * seq_len + row) * kv_len + key] = visible ? scale * score : -CUDART_INF_F;
}

// Softmax of each row, in place, one warp a row. A row of nothing but -inf (a query that sees no key) becomes zeros.
__global__ void attention_softmax(float* scores, long long rows, int kv_len) {
    const long long row = blockIdx.x * (blockDim.x / 32LL) + warp_id();
    if (row >= rows) return;
    scores += row * kv_len;

    float max = -CUDART_INF_F;
    for (int key = lane_id(); key < kv_len; key += 32) max = fmaxf(max, scores[key]);
    max = warp_max(max);
    if (max == -CUDART_INF_F) max = 0.0f;

    float sum = 0.0f;
    for (int key = lane_id(); key < kv_len; key += 32) sum += __expf(scores[key] - max);
    sum = warp_sum(sum);

    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (int key = lane_id(); key < kv_len; key += 32) scores[key] = __expf(scores[key] - max) * factor;
}

// out[z][i][d] = sum over keys of scores[z][i][key] * v[z / group][key][d]. One thread an element: x is d, y the query, z the head.
template <class T>
__global__ void attention_output(const float* scores, const T* v, T* out, int seq_len, int kv_len, int head_dim, int group) {
    const int d = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = blockIdx.y * blockDim.y + threadIdx.y;
    const long long z = blockIdx.z;
    if (row >= seq_len || d >= head_dim) return;
    scores += (z * seq_len + row) * kv_len;
    v += z / group * kv_len * head_dim;

    float sum = 0.0f;
    for (int key = 0; key < kv_len; ++key) sum += scores[key] * to_float(v[key * (long long)head_dim + d]);
    out[(z * seq_len + row) * head_dim + d] = from_float<T>(sum);
}
