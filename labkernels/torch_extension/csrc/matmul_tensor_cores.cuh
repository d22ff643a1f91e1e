// Launches v6 of matmul, for GPUs before Hopper and after: what tensor_cores.py does in Python, for rows on 16 bytes.
#pragma once
#include "../../matmul/v6_tensor_cores.cu"
#include "element.h"

namespace labkernels {

template <class T, int BLOCK_M, int BLOCK_N, int BLOCK_K, int WARP_M, int WARP_N, int STAGES, int BLOCKS, int SHARED>
struct TensorCoreMatmul {
    static constexpr int THREADS = BLOCK_M / WARP_M * (BLOCK_N / WARP_N) * 32;

    template <bool B_ROWS, int ACTIVATION>
    static void launch(const MatmulCall& call) {
        constexpr auto kernel = &matmul_tensor_cores<T, BLOCK_M, BLOCK_N, BLOCK_K, WARP_M, WARP_N, STAGES, BLOCKS, B_ROWS, 8, ACTIVATION>;
        static SharedMemory shared;
        shared.allow(reinterpret_cast<const void*>(kernel), SHARED, call.gpu.index);
        kernel<<<ceil_div(call.m, BLOCK_M) * ceil_div(call.n, BLOCK_N), THREADS, SHARED, call.gpu.stream>>>(
            static_cast<const T*>(call.a), static_cast<const T*>(call.b), static_cast<T*>(call.c), call.m, call.n, call.k, call.a_stride, call.b_stride,
            static_cast<const T*>(call.bias), static_cast<const T*>(call.residual), call.residual_stride);
        check(cudaGetLastError(), "matmul_tensor_cores");
    }

    template <bool B_ROWS>
    static void run_layout(const MatmulCall& call) {
        switch (call.activation) {
            case 0: return launch<B_ROWS, 0>(call);
            case 1: return launch<B_ROWS, 1>(call);
            case 2: return launch<B_ROWS, 2>(call);
            case 3: return launch<B_ROWS, 3>(call);
            default: return launch<B_ROWS, 4>(call);
        }
    }

    static void run(const MatmulCall& call) { call.b_rows ? run_layout<true>(call) : run_layout<false>(call); }

    static MatmulKernel kernel(int architecture, float stage) {
        return {element_of<T>, architecture, BLOCK_M, BLOCK_N, true, true, 8, 0.0f, 0.0f, stage, &run};
    }
};

}  // namespace labkernels
