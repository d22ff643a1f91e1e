// Tensor maps for the copy engine, encoded by the driver, whose function is asked for at run time: nothing is linked with libcuda.
#pragma once
#include <cuda.h>

#include "element.h"
#include "tma.cuh"

namespace labkernels {

inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
    static const auto encoder = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
        check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result), "cuTensorMapEncodeTiled");
#else
        check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result), "cuTensorMapEncodeTiled");
#endif
        if (found == nullptr) throw std::runtime_error("labkernels: this driver has no cuTensorMapEncodeTiled; it is too old for Hopper");
        return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
    }();
    return encoder;
}

// Axes from the innermost on; strides in elements, from the second axis on. An axis of length 1 may have any stride.
template <int RANK>
TensorMap tensor_map(CUtensorMapDataType type, int element_bytes, const void* data, const long long (&sizes)[RANK],
                     const long long (&strides)[RANK - 1], const int (&box)[RANK], int swizzle) {
    cuuint64_t dims[RANK], bytes[RANK - 1];
    cuuint32_t boxes[RANK], steps[RANK];
    for (int i = 0; i < RANK; ++i) dims[i] = sizes[i], boxes[i] = box[i], steps[i] = 1;
    for (int i = 0; i + 1 < RANK; ++i) bytes[i] = sizes[i + 1] > 1 ? strides[i] * element_bytes : 16;
    const auto pattern = swizzle == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : swizzle == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_NONE;
    TensorMap map;
    const CUresult status =
        tensor_map_encoder()(reinterpret_cast<CUtensorMap*>(&map), type, RANK, const_cast<void*>(data), dims, bytes, boxes, steps,
                             CU_TENSOR_MAP_INTERLEAVE_NONE, pattern, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS) throw std::runtime_error("labkernels: the driver refuses a tensor map, error " + std::to_string(status));
    return map;
}

template <class T>
constexpr CUtensorMapDataType map_type = element_of<T> == Element::kHalf ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;

// Rows of `columns` elements, `stride` elements apart.
template <class T>
TensorMap matrix_map(const void* data, int rows, int columns, long long stride, int box_rows, int box_columns, int swizzle) {
    return tensor_map<2>(map_type<T>, sizeof(T), data, {columns, rows}, {stride}, {box_columns, box_rows}, swizzle);
}

// (batch, heads, seq, head_dim), for boxes of so many rows of 64 columns.
template <class T>
TensorMap head_map(const HeadTensor& x, int batches, int heads, int seq, int head_dim, int box_rows) {
    return tensor_map<4>(map_type<T>, sizeof(T), x.data, {head_dim, seq, heads, batches}, {x.stride.seq, x.stride.head, x.stride.batch},
                         {64, box_rows, 1, 1}, 128);
}

}  // namespace labkernels
