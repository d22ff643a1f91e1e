// What the backward kernels share: where the values of a row of queries lie, and how blocks take turns to add to one sum.
#pragma once
#include "../attention/visible.cuh"
#include "pack.cuh"
#include "strides.cuh"
#include "vector.cuh"

constexpr float LN_OF_2 = 0.6931471805599453f;

// Values of queries (lse, delta, sums of dq) lie in whole tiles, tile after tile, `row_tiles` of them a head. Packed sequences each
// begin with a tile of their own: the one with index `first_query / BLOCK_Q + batch` is free.
struct RowTiles {
    int first, row_tiles, first_head;
    __device__ long long index(int head, int tile) const { return static_cast<long long>(first_head + head) * row_tiles + first + tile; }
};

template <class T>
__device__ void unpack_pair(unsigned pair, float& low, float& high);
template <>
__device__ __forceinline__ void unpack_pair<__nv_bfloat16>(unsigned pair, float& low, float& high) {
    low = __uint_as_float(pair << 16);
    high = __uint_as_float(pair & 0xffff0000u);
}
template <>
__device__ __forceinline__ void unpack_pair<__half>(unsigned pair, float& low, float& high) {
    const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&pair));
    low = both.x;
    high = both.y;
}

// Waits until `before` others have added to this tile, so that every run adds in the same order.
__device__ __forceinline__ void wait_for_turn(int* turn, int before) {
    while (*static_cast<volatile int*>(turn) != before) __nanosleep(20);
    __threadfence();
}
__device__ __forceinline__ void pass_turn(int* turn) {
    __threadfence();
    atomicAdd(turn, 1);
}

// lse in units of log 2, and delta, the sum of grad * out over a row: eight elements a lane, as many lanes a row as it takes. A query
// that is not there, or sees nothing, or nothing above torch.finfo.min, gets an infinite lse: its probabilities become 0. Rows lie on 16 bytes.
// Launch (tiles, heads of all batches from first_batch on) blocks.
template <class T, int HEAD_DIM, int BLOCK_Q>
__global__ void __launch_bounds__(256)
    attention_backward_prepare(const T* grad, const T* out, const float* lse, float* row_lse, float* delta, Strides grad_strides, Strides out_strides,
                               long long lse_batch, long long lse_head, const int* cu_seqlens_q, int heads, int seq_len, int head_dim, int row_tiles,
                               int first_batch) {
    constexpr int LANES = HEAD_DIM <= 64 ? 8 : HEAD_DIM <= 128 ? 16 : 32;  // of a row
    const int batch = blockIdx.y / heads + first_batch, head = blockIdx.y % heads, column = threadIdx.x % LANES * 8;
    const Bounds bounds = bounds_of(cu_seqlens_q, nullptr, batch, seq_len, 0);
    if (static_cast<int>(blockIdx.x) * BLOCK_Q >= bounds.seq_len) return;
    const RowTiles rows{cu_seqlens_q ? bounds.first_query / BLOCK_Q + batch : 0, row_tiles, cu_seqlens_q ? 0 : batch * heads};
    const T* grads = head_matrix(grad, grad_strides, cu_seqlens_q ? 0 : batch, head) + bounds.first_query * grad_strides.seq + column;
    const T* outs = head_matrix(out, out_strides, cu_seqlens_q ? 0 : batch, head) + bounds.first_query * out_strides.seq + column;
#pragma unroll 4
    for (int i = threadIdx.x / LANES; i < BLOCK_Q; i += 256 / LANES) {
        const int query = blockIdx.x * BLOCK_Q + i;
        float sum = 0.0f;
        if (query < bounds.seq_len && column < head_dim) {
            float g[8], o[8];
            load_vector(grads + query * grad_strides.seq, g);
            load_vector(outs + query * out_strides.seq, o);
#pragma unroll
            for (int j = 0; j < 8; ++j) sum += g[j] * o[j];
        }
#pragma unroll
        for (int distance = LANES / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        if (column == 0) {
            const long long at = rows.index(head, blockIdx.x) * BLOCK_Q + i;
            const float value = query < bounds.seq_len ? lse[batch * lse_batch + head * lse_head + bounds.first_query + query] : -CUDART_INF_F;
            row_lse[at] = value < LEAST_LSE ? CUDART_INF_F : value * LOG2_OF_E;
            delta[at] = sum;
        }
    }
}
