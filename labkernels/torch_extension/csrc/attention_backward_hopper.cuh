// Launches v3 of attention_backward: what attention_backward/hopper.py does in Python.
#pragma once
#include "../../attention_backward/v3_hopper.cu"
#include "tensor_map.h"

namespace labkernels {

template <class T, int HEAD_DIM, int BLOCK_Q, int SHARED>
struct HopperBackward {
    static Strides strides(const HeadTensor& x) { return {x.stride.batch, x.stride.head, x.stride.seq}; }

    template <bool DETERMINISTIC>
    static void launch(const BackwardCall& call) {
        const AttentionCall& of = call.forward;
        constexpr auto main = &attention_backward_hopper<T, HEAD_DIM, BLOCK_Q, MASK_NONE, DETERMINISTIC>;
        static SharedMemory shared;
        shared.allow(reinterpret_cast<const void*>(main), SHARED, of.gpu.index);
        const int row_tiles = ceil_div(of.seq_len, BLOCK_Q), head_count = of.batches * of.heads;
        const long long rows = static_cast<long long>(head_count) * row_tiles * BLOCK_Q;
        float *row_lse = call.row_values, *delta = call.row_values + rows;

        attention_backward_prepare<T, HEAD_DIM, BLOCK_Q><<<dim3(row_tiles, head_count), 256, 0, of.gpu.stream>>>(
            static_cast<const T*>(call.grad.data), static_cast<const T*>(of.out.data), of.lse, row_lse, delta, strides(call.grad), strides(of.out),
            static_cast<long long>(of.heads) * of.seq_len, of.seq_len, nullptr, of.heads, of.seq_len, of.head_dim, row_tiles, 0);

        const auto map = [&](const HeadTensor& x, int box_rows, bool queries) {
            return head_map<T>(x, of.batches, queries ? of.heads : of.kv_heads, queries ? of.seq_len : of.kv_len, of.head_dim, box_rows);
        };
        const TensorMap q = map(of.q, BLOCK_Q, true), k = map(of.k, BLOCK_K, false), v = map(of.v, BLOCK_K, false);
        const TensorMap grad = map(call.grad, BLOCK_Q, true), dk = map(call.grad_k, 64, false), dv = map(call.grad_v, 64, false);
        const TensorMap sums = tensor_map<2>(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, call.sums, {256, rows * HEAD_DIM / 256}, {256},
                                             {256, BLOCK_Q * HEAD_DIM / 512}, 0);
        main<<<dim3(ceil_div(of.kv_len, BLOCK_K), of.batches * of.kv_heads), GROUP * (CONSUMERS + 1), SHARED, of.gpu.stream>>>(
            q, k, v, grad, sums, dk, dv, static_cast<T*>(call.grad_k.data), static_cast<T*>(call.grad_v.data), strides(call.grad_k),
            strides(call.grad_v), row_lse, delta, call.turns, nullptr, MaskStrides{}, nullptr, nullptr, of.heads, of.heads / of.kv_heads, of.seq_len,
            of.kv_len, of.head_dim, row_tiles, of.window_left, of.window_right, of.scale * LOG2_OF_E, 0);

        attention_backward_finish<T, HEAD_DIM, BLOCK_Q><<<dim3(row_tiles, head_count), GROUP * CONSUMERS, 0, of.gpu.stream>>>(
            call.sums, static_cast<T*>(call.grad_q.data), strides(call.grad_q), nullptr, of.heads, of.seq_len, of.head_dim, row_tiles, of.scale, 0);
        check(cudaGetLastError(), "attention_backward_hopper");
    }

    static void run(const BackwardCall& call) { call.turns != nullptr ? launch<true>(call) : launch<false>(call); }
    static BackwardKernel kernel() { return {element_of<T>, 90, HEAD_DIM, BLOCK_Q, &run}; }
};

}  // namespace labkernels
