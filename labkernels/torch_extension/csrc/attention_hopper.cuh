// Launches v6 of attention; what hopper.py does in Python.
#pragma once
#include "../../attention/v6_hopper.cu"
#include "tensor_map.h"

namespace labkernels {

inline Strides device_strides(const HeadTensor& x) { return {x.stride.batch, x.stride.head, x.stride.seq}; }

template <class T, int HEAD_DIM, int CONSUMERS, int BLOCK_K, int STAGES, int Q_BUFFERS>
struct HopperAttention {
    static constexpr int BLOCK_Q = 64 * CONSUMERS;
    static constexpr int SHARED = (Q_BUFFERS * BLOCK_Q + 2 * STAGES * BLOCK_K) * HEAD_DIM * 2 + 16 * (Q_BUFFERS + 2 * STAGES);

    static void run(const AttentionCall& call) {
        constexpr auto kernel = &attention_hopper<T, HEAD_DIM, CONSUMERS, BLOCK_K, STAGES, Q_BUFFERS, MASK_NONE>;
        static SharedMemory shared;
        shared.allow(reinterpret_cast<const void*>(kernel), SHARED, call.gpu.index);
        const TensorMap q = head_map<T>(call.q, call.batches, call.heads, call.seq_len, call.head_dim, BLOCK_Q);
        const TensorMap k = head_map<T>(call.k, call.batches, call.kv_heads, call.kv_len, call.head_dim, BLOCK_K);
        const TensorMap v = head_map<T>(call.v, call.batches, call.kv_heads, call.kv_len, call.head_dim, BLOCK_K);
        const TensorMap out = head_map<T>(call.out, call.batches, call.heads, call.seq_len, call.head_dim, 64);
        const long long tiles = static_cast<long long>(ceil_div(call.seq_len, BLOCK_Q)) * call.heads * call.batches;
        const int blocks = static_cast<int>(tiles < call.gpu.processors ? tiles : call.gpu.processors);
        kernel<<<blocks, GROUP * (CONSUMERS + 1), SHARED, call.gpu.stream>>>(
            q, k, v, out, static_cast<T*>(call.out.data), device_strides(call.out), call.lse, static_cast<long long>(call.heads) * call.seq_len,
            call.seq_len, nullptr, MaskStrides{}, nullptr, nullptr, call.batches, call.heads, call.heads / call.kv_heads, call.seq_len, call.kv_len,
            call.head_dim, call.window_left, call.window_right, call.scale * LOG2_OF_E);
        check(cudaGetLastError(), "attention_hopper");
    }

    static AttentionKernel kernel(bool short_and_causal) { return {element_of<T>, 90, HEAD_DIM, short_and_causal, &run}; }
};

}  // namespace labkernels
