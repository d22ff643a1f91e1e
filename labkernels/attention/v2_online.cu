// Attention, v2: online softmax. One warp owns one query and walks over the keys; its output row stays in registers.
//   Idea      The N x N matrix is never written. The warp keeps the largest score so far, the sum measured against it, and the output
//             measured against it. When a larger score arrives, sum and output are both multiplied by the factor they were wrong by.
//   Predicts  Memory O(N), not O(N^2): at S=8192 with 32 heads, 8.6 GB of scores (v1) become none. But every query reads all of K
//             and V: S*S*head_dim*8 bytes a head, from the caches, and five shuffles for each key.
//   Measured  data/measured/h200/attention.csv: float32, S=4096, d=128, 32 heads: v1 298 ms -> v2 54.9 ms.
//   Wastes    A key that is loaded serves one query of the warp. The shuffles outnumber the multiplications: with head_dim 64, a
//             lane multiplies 2 numbers for a score and then takes 5 steps to add it up with the others.
#include <math_constants.h>

#include "convert.cuh"
#include "strides.cuh"
#include "warp.cuh"

// out = softmax(scale * q k^T) v. out: (batch, heads, seq, head_dim), contiguous; k and v have heads / group heads.
// causal: query i sees the keys up to i + kv_len - seq_len; a query that sees none gets zeros.
// Launch with a grid of (ceil(seq_len / warps), heads, batch). VALUES * 32 must be at least head_dim.
template <class T, int VALUES>
__global__ void attention_online(const T* q, const T* k, const T* v, T* out, Strides q_strides, Strides k_strides, Strides v_strides,
                                 int seq_len, int kv_len, int head_dim, int group, bool causal, float scale) {
    const int row = blockIdx.x * (blockDim.x / 32) + warp_id();
    const int head = blockIdx.y, batch = blockIdx.z;
    if (row >= seq_len) return;
    q = head_matrix(q, q_strides, batch, head) + row * q_strides.seq;
    k = head_matrix(k, k_strides, batch, head / group);
    v = head_matrix(v, v_strides, batch, head / group);
    out += ((batch * (long long)gridDim.y + head) * seq_len + row) * head_dim;

    // Lane l holds the elements l, l + 32, l + 64 ... of the query and of the output.
    float query[VALUES], output[VALUES] = {};
#pragma unroll
    for (int i = 0; i < VALUES; ++i) {
        const int d = lane_id() + 32 * i;
        query[i] = d < head_dim ? scale * to_float(q[d]) : 0.0f;
    }

    float max = -CUDART_INF_F, sum = 0.0f;
    const int keys = causal ? min(kv_len, row + kv_len - seq_len + 1) : kv_len;
    for (int key = 0; key < keys; ++key) {
        float score = 0.0f;
#pragma unroll
        for (int i = 0; i < VALUES; ++i) {
            const int d = lane_id() + 32 * i;
            if (d < head_dim) score += query[i] * to_float(k[key * k_strides.seq + d]);
        }
        score = warp_sum(score);

        const float new_max = fmaxf(max, score);
        const float correction = __expf(max - new_max);  // 0 at the first key, where max is -inf
        const float weight = __expf(score - new_max);
        max = new_max;
        sum = sum * correction + weight;
#pragma unroll
        for (int i = 0; i < VALUES; ++i) {
            const int d = lane_id() + 32 * i;
            if (d < head_dim) output[i] = output[i] * correction + weight * to_float(v[key * v_strides.seq + d]);
        }
    }

    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
    for (int i = 0; i < VALUES; ++i) {
        const int d = lane_id() + 32 * i;
        if (d < head_dim) out[d] = from_float<T>(output[i] * factor);
    }
}
