// Decode attention, v1: naive. Three kernels: all scores to memory, their softmax, the weighted sum of the values.
//   Idea      The definition. One query a head and a whole cache of keys: a thread for each score, a warp for each softmax, a thread for
//             each element of the result.
//   Predicts  Each head of q reads its keys and values for itself: with 4 heads to one of k and v, 4 times the bytes that must come from
//             memory or L2. A thread walks over a key alone, its neighbours over the next keys: loads that are head_dim elements apart.
//   Measured  data/measured/h200/decode_attention.csv, 32 heads to 8 of k and v, in bfloat16: 8 sequences of 8192 tokens 4.27 ms, 1.4% of the
//             limit; one alone takes 3.30.
//   Wastes    Those repeated reads, scattered loads, three launches, and the scores' way through memory. The last kernel has head_dim threads
//             a head, so that one sequence leaves most of the GPU idle while it sums over all its tokens.
#include <math_constants.h>

#include "cache.cuh"
#include "warp.cuh"

// scores (batch, kv_heads, rows, capacity) in units of log 2. Launch with a grid of (ceil(capacity / 128), rows, batch * kv_heads).
template <class T, class C>
__global__ void decode_scores(const T* q, const C* k, const float* k_scale, const int* lengths, const int* block_table, float* scores, int capacity,
                              Problem problem) {
    const int token = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y, batch = blockIdx.z / problem.kv_heads, head = blockIdx.z % problem.kv_heads;
    if (token >= capacity) return;
    float score = -CUDART_INF_F;
    if (token < problem.visible(row, lengths[batch])) {
        const Sequence sequence(block_table, problem, batch, head);
        const T* query = problem.query(q, batch, head, row);
        const C* key = k + sequence.element(token, problem.k_page, problem.k_head, problem.k_token);
        float sum = 0.0f;
        for (int d = 0; d < problem.head_dim; ++d) sum += to_float(query[d]) * to_float(key[d]);
        score = sum * problem.scale;
        if (k_scale) score *= k_scale[sequence.scale(token, problem.ks_page, problem.ks_head)];
    }
    scores[problem.out_row(batch, head, row) * capacity + token] = score;
}

// Each row of scores becomes weights; 0 for a row that sees nothing. One warp a row.
__global__ void decode_softmax(float* scores, int rows, int capacity) {
    const long long row = blockIdx.x * (blockDim.x / 32LL) + warp_id();
    if (row >= rows) return;
    scores += row * capacity;
    float max = -CUDART_INF_F, sum = 0.0f;
    for (int token = lane_id(); token < capacity; token += 32) max = fmaxf(max, scores[token]);
    max = warp_max(max);
    const float base = max == -CUDART_INF_F ? 0.0f : max;
    for (int token = lane_id(); token < capacity; token += 32) sum += exp2f(scores[token] - base);
    sum = warp_sum(sum);
    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (int token = lane_id(); token < capacity; token += 32) scores[token] = exp2f(scores[token] - base) * factor;
}

// out (batch, heads, queries, head_dim). Launch with a grid of (ceil(head_dim / 32), rows, batch * kv_heads), 32 threads.
template <class T, class C>
__global__ void decode_output(const float* weights, const C* v, const float* v_scale, const int* lengths, const int* block_table, T* out, int capacity,
                              Problem problem) {
    const int d = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y, batch = blockIdx.z / problem.kv_heads, head = blockIdx.z % problem.kv_heads;
    if (d >= problem.head_dim) return;
    const Sequence sequence(block_table, problem, batch, head);
    const long long out_row = problem.out_row(batch, head, row);
    const int visible = min(problem.visible(row, lengths[batch]), capacity);
    float sum = 0.0f;
    for (int token = 0; token < visible; ++token) {
        float weight = weights[out_row * capacity + token];
        if (v_scale) weight *= v_scale[sequence.scale(token, problem.vs_page, problem.vs_head)];
        sum += weight * to_float(v[sequence.element(token, problem.v_page, problem.v_head, problem.v_token) + d]);
    }
    out[out_row * problem.head_dim + d] = from_float<T>(sum);
}
