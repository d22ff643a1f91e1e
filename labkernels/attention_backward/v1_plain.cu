// Attention backward, v1: plain. One warp owns one query and sums its dq; then one warp owns one key and sums its dk and dv.
//   Idea      The forward pass kept no probabilities, only lse, the logarithm of each softmax's sum. exp(score - lse) gives each of them
//             back, in any order, from one dot product. With delta, the sum of grad * out over a row, so does the softmax's gradient.
//   Predicts  No sum is shared by two warps, so nothing is added atomically, and the same inputs give the same bits. The price: scores and
//             dp are worked out twice, once for dq and once for dk and dv: 7 products of N x N x head_dim instead of 5.
//   Measured  data/measured/h200/attention_backward.csv, 2048 tokens, head_dim 128: in float32 32.1 ms for 32 heads (PyTorch's 4.72 ms), in
//             bf16 124 ms for 8 x 16 (FlashAttention-2 2.57 ms, v2 2.40 ms).
//   Wastes    As forward v2: a row that is loaded serves one warp, and each dot product takes five shuffles, two of them for every pair of
//             query and key, in both kernels.
#include "../attention/visible.cuh"
#include "strides.cuh"
#include "warp.cuh"

struct Problem {
    Strides grad, q, k, v, out, dq, dk, dv;
    MaskStrides mask;
    long long lse_batch, lse_head;  // strides of lse; delta's are the same
    int heads, group;               // `group` heads of q share one of k and v
    int seq_len, kv_len;            // of the longest sequence, where they are packed
    int head_dim, window_left, window_right;
    float scale;
};

// Lane l holds the elements l, l + 32, l + 64 ... of a row.
template <int VALUES>
struct Row {
    float values[VALUES];

    template <class T>
    __device__ void load(const T* row, int head_dim) {
#pragma unroll
        for (int i = 0; i < VALUES; ++i) values[i] = lane_id() + 32 * i < head_dim ? to_float(row[lane_id() + 32 * i]) : 0.0f;
    }
    __device__ float dot(const Row& other) const {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < VALUES; ++i) sum += values[i] * other.values[i];
        return warp_sum(sum);
    }
    __device__ void add(float factor, const Row& other) {
#pragma unroll
        for (int i = 0; i < VALUES; ++i) values[i] += factor * other.values[i];
    }
    template <class T>
    __device__ void store(T* row, int head_dim, float factor) const {
#pragma unroll
        for (int i = 0; i < VALUES; ++i)
            if (lane_id() + 32 * i < head_dim) row[lane_id() + 32 * i] = from_float<T>(values[i] * factor);
    }
};

// The probability of a pair that the window shows. A query that sees nothing has an lse of -inf, and probabilities of 0.
template <int MASK, class T>
__device__ float probability(float score, float lse, const Mask<MASK, T>& mask, float scale, int query, int key) {
    return lse < LEAST_LSE ? 0.0f : exp2f(mask.apply(score * scale * LOG2_OF_E, query, key) - lse * LOG2_OF_E);
}

// dq, and delta for the other kernel. Launch with a grid of (ceil(seq_len / warps), heads, batch). VALUES * 32 must be at least head_dim.
template <class T, int VALUES, int MASK>
__global__ void attention_backward_queries(const T* grad, const T* q, const T* k, const T* v, const T* out, const float* lse, float* delta, T* dq,
                                           const void* mask_values, const int* cu_seqlens_q, const int* cu_seqlens_k, Problem problem) {
    const int query = blockIdx.x * (blockDim.x / 32) + warp_id(), head = blockIdx.y, batch = blockIdx.z, head_dim = problem.head_dim;
    const Bounds bounds = bounds_of(cu_seqlens_q, cu_seqlens_k, batch, problem.seq_len, problem.kv_len);
    if (query >= bounds.seq_len) return;
    const Window window(bounds.seq_len, bounds.kv_len, problem.window_left, problem.window_right);
    const Mask<MASK, T> mask(mask_values, problem.mask, batch, head);
    const long long row = bounds.first_query + query, value = batch * problem.lse_batch + head * problem.lse_head + row;
    k = head_matrix(k, problem.k, batch, head / problem.group) + bounds.first_key * problem.k.seq;
    v = head_matrix(v, problem.v, batch, head / problem.group) + bounds.first_key * problem.v.seq;

    Row<VALUES> own_grad, own_query, other, sum = {};
    own_grad.load(head_matrix(grad, problem.grad, batch, head) + row * problem.grad.seq, head_dim);
    own_query.load(head_matrix(q, problem.q, batch, head) + row * problem.q.seq, head_dim);
    other.load(head_matrix(out, problem.out, batch, head) + row * problem.out.seq, head_dim);
    const float own_delta = own_grad.dot(other);
    if (lane_id() == 0) delta[value] = own_delta;

    for (int key = window.first_key(query); key < window.end_key(query); ++key) {
        other.load(v + key * problem.v.seq, head_dim);
        const float dp = own_grad.dot(other);
        other.load(k + key * problem.k.seq, head_dim);
        const float p = probability(own_query.dot(other), lse[value], mask, problem.scale, query, key);
        sum.add(p * (dp - own_delta), other);
    }
    sum.store(head_matrix(dq, problem.dq, batch, head) + row * problem.dq.seq, head_dim, problem.scale);
}

// dk and dv, over all heads of q that share them. Launch with a grid of (ceil(kv_len / warps), kv_heads, batch).
template <class T, int VALUES, int MASK>
__global__ void attention_backward_keys(const T* grad, const T* q, const T* k, const T* v, const float* lse, const float* delta, T* dk, T* dv,
                                        const void* mask_values, const int* cu_seqlens_q, const int* cu_seqlens_k, Problem problem) {
    const int key = blockIdx.x * (blockDim.x / 32) + warp_id(), kv_head = blockIdx.y, batch = blockIdx.z, head_dim = problem.head_dim;
    const Bounds bounds = bounds_of(cu_seqlens_q, cu_seqlens_k, batch, problem.seq_len, problem.kv_len);
    if (key >= bounds.kv_len) return;
    const Window window(bounds.seq_len, bounds.kv_len, problem.window_left, problem.window_right);
    const long long row = bounds.first_key + key;

    Row<VALUES> own_key, own_value, other_query, other_grad, key_sum = {}, value_sum = {};
    own_key.load(head_matrix(k, problem.k, batch, kv_head) + row * problem.k.seq, head_dim);
    own_value.load(head_matrix(v, problem.v, batch, kv_head) + row * problem.v.seq, head_dim);
    for (int head = kv_head * problem.group; head < (kv_head + 1) * problem.group; ++head) {
        const Mask<MASK, T> mask(mask_values, problem.mask, batch, head);
        const T* queries = head_matrix(q, problem.q, batch, head) + bounds.first_query * problem.q.seq;
        const T* grads = head_matrix(grad, problem.grad, batch, head) + bounds.first_query * problem.grad.seq;
        const long long values = batch * problem.lse_batch + head * problem.lse_head + bounds.first_query;
        for (int query = window.first_query(key); query < window.end_query(key); ++query) {
            other_query.load(queries + query * problem.q.seq, head_dim);
            other_grad.load(grads + query * problem.grad.seq, head_dim);
            const float p = probability(own_key.dot(other_query), lse[values + query], mask, problem.scale, query, key);
            value_sum.add(p, other_grad);
            key_sum.add(p * (own_value.dot(other_grad) - delta[values + query]), other_query);
        }
    }
    key_sum.store(head_matrix(dk, problem.dk, batch, kv_head) + row * problem.dk.seq, head_dim, problem.scale);
    value_sum.store(head_matrix(dv, problem.dv, batch, kv_head) + row * problem.dv.seq, head_dim, 1.0f);
}
