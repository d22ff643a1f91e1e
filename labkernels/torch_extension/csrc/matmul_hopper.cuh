// Launches v7 of matmul; what hopper.py does in Python. A unit is UNIT(T, a Config's numbers ..., its costs ...).
#pragma once
#include "../../matmul/v7_hopper.cu"
#include "tensor_map.h"

namespace labkernels {

template <class T, int ROWS, int COLUMNS, int CONSUMERS, int STAGES, int SLABS, int BAND>
struct HopperMatmul {
    static constexpr int SHARED = STAGES * (ROWS + COLUMNS) * ROW_BYTES + SLABS * 64 * ROW_BYTES + 16 * STAGES;
    static constexpr bool TAKES_B_ROWS = COLUMNS % 64 == 0;  // they come in panels of 64 columns

    template <bool B_ROWS, bool FINISH, int ACTIVATION>
    static void launch(const MatmulCall& call) {
        constexpr auto kernel = &matmul_hopper<T, T, ROWS, COLUMNS, CONSUMERS, STAGES, SLABS, 1, false, B_ROWS, FINISH, ACTIVATION>;
        constexpr int DEPTH = ROW_BYTES / sizeof(T), SLAB = COLUMNS % 64 ? 32 : 64;
        static SharedMemory shared;
        shared.allow(reinterpret_cast<const void*>(kernel), SHARED, call.gpu.index);
        const TensorMap a = matrix_map<T>(call.a, call.m, call.k, call.a_stride, ROWS, DEPTH, 128);
        const TensorMap b = B_ROWS ? matrix_map<T>(call.b, call.k, call.n, call.b_stride, DEPTH, 64, 128)
                                   : matrix_map<T>(call.b, call.n, call.k, call.b_stride, COLUMNS, DEPTH, 128);
        const TensorMap c = matrix_map<T>(call.c, call.m, call.n, call.n, 64, SLAB, 2 * SLAB);
        const TensorMap residual = call.residual == nullptr ? c : matrix_map<T>(call.residual, call.m, call.n, call.residual_stride, ROWS, SLAB, 2 * SLAB);
        const long long tiles = static_cast<long long>(ceil_div(call.m, ROWS)) * ceil_div(call.n, COLUMNS);
        const int blocks = static_cast<int>(tiles < call.gpu.processors ? tiles : call.gpu.processors);
        kernel<<<blocks, GROUP * (CONSUMERS + 1), SHARED, call.gpu.stream>>>(
            a, b, c, residual, call.m, call.n, call.k, nullptr, nullptr, static_cast<const T*>(call.bias), call.residual != nullptr, BAND);
        check(cudaGetLastError(), "matmul_hopper");
    }

    static void run_columns(const MatmulCall& call) {
        if (!call.finishes()) return launch<false, false, 0>(call);
        switch (call.activation) {
            case 0: return launch<false, true, 0>(call);
            case 1: return launch<false, true, 1>(call);
            case 2: return launch<false, true, 2>(call);
            case 3: return launch<false, true, 3>(call);
            default: return launch<false, true, 4>(call);
        }
    }

    static void run(const MatmulCall& call) {
        if constexpr (TAKES_B_ROWS) {
            if (call.b_rows) return launch<true, false, 0>(call);
        }
        run_columns(call);
    }

    static MatmulKernel kernel(float launch, float tile, float stage) {
        return {element_of<T>, 90, ROWS, COLUMNS, TAKES_B_ROWS, false, 1, launch, tile, stage, &run};
    }
};

}  // namespace labkernels
