// Launches v5 of attention, for GPUs before Hopper and after: what tensor_cores.py does in Python, for rows on 16 bytes.
#pragma once
#include "../../attention/v5_tensor_cores.cu"
#include "element.h"

namespace labkernels {

template <class T, class Tiling>
struct TensorCoreAttention {
    static constexpr int SHARED = (Tiling::QUERIES + 4 * Tiling::KEYS) * Tiling::HEAD_DIM * 2;
    static constexpr int L2_BYTES = 24 << 20;  // for K and V of the heads whose blocks run side by side

    static Strides strides(const HeadTensor& x) { return {x.stride.batch, x.stride.head, x.stride.seq}; }

    static void run(const AttentionCall& call) {
        constexpr auto kernel = &attention_tensor_cores<T, Tiling, MASK_NONE, 8, false>;
        static SharedMemory shared;
        shared.allow(reinterpret_cast<const void*>(kernel), SHARED, call.gpu.index);
        const int group = call.heads / call.kv_heads, matrices = call.batches * call.heads;
        const long long matrix_bytes = 4ll * call.kv_len * call.head_dim, fit = L2_BYTES / matrix_bytes;
        const long long wanted = group * (fit > 1 ? fit : 1);
        const int at_a_time = static_cast<int>(wanted < matrices ? wanted : matrices);
        const Strides lse = {static_cast<long long>(call.heads) * call.seq_len, call.seq_len, 1};
        const Problem problem = {strides(call.q), strides(call.k), strides(call.v), strides(call.out), lse, MaskStrides{}, call.batches, call.heads,
                                 group, call.seq_len, call.kv_len, call.head_dim, call.window_left, call.window_right, call.scale * LOG2_OF_E};
        const dim3 grid(at_a_time, ceil_div(call.seq_len, Tiling::QUERIES), ceil_div(matrices, at_a_time));
        kernel<<<grid, Tiling::THREADS, SHARED, call.gpu.stream>>>(
            static_cast<const T*>(call.q.data), static_cast<const T*>(call.k.data), static_cast<const T*>(call.v.data), static_cast<T*>(call.out.data),
            call.lse, nullptr, nullptr, nullptr, problem);
        check(cudaGetLastError(), "attention_tensor_cores");
    }

    static AttentionKernel kernel(int architecture) { return {element_of<T>, architecture, Tiling::HEAD_DIM, false, &run}; }
};

}  // namespace labkernels
