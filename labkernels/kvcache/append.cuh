// How a token's row of one head is written into a cache: as it is, or as int8 or fp8 with a scale (layout.py says which). For kernels that append,
// alone or at the end of something else (rotary embedding).
#pragma once
#include <cuda_fp8.h>

#include "convert.cuh"
#include "warp.cuh"

template <class C>
struct Stored {  // as it is
    static constexpr float LARGEST = 0.0f;
    static __device__ C of(float value) { return from_float<C>(value); }
};
template <>
struct Stored<signed char> {
    static constexpr float LARGEST = 127.0f;
    static __device__ signed char of(float scaled) { return static_cast<signed char>(max(-127, min(127, __float2int_rn(scaled)))); }
};
template <>
struct Stored<__nv_fp8_e4m3> {
    static constexpr float LARGEST = 448.0f;
    static __device__ __nv_fp8_e4m3 of(float scaled) { return static_cast<__nv_fp8_e4m3>(scaled); }
};

// VALUES elements of one lane, in memory.
template <class C, int VALUES>
struct alignas(VALUES * sizeof(C) >= 16 ? 16 : VALUES * sizeof(C)) StoredVector {
    C element[VALUES];
};

// A warp writes one row: lane l holds its elements l * VALUES to l * VALUES + VALUES - 1, zeros from head_dim on. All 32 lanes call. `scale` is where
// the row's scale goes, and not looked at if C needs none. ALIGNED: row and head_dim are multiples of VALUES elements.
template <bool ALIGNED, class C, int VALUES>
__device__ void store_row(C* row, float* scale, const float (&values)[VALUES], int head_dim) {
    constexpr float LARGEST = Stored<C>::LARGEST;
    float factor = 1.0f;
    if constexpr (LARGEST > 0.0f) {
        float largest = 0.0f;
#pragma unroll
        for (int i = 0; i < VALUES; ++i) largest = fmaxf(largest, fabsf(values[i]));
        largest = warp_max(largest);
        factor = largest > 0.0f ? LARGEST / largest : 0.0f;
        if (lane_id() == 0) *scale = largest / LARGEST;
    }
    StoredVector<C, VALUES> vector;
#pragma unroll
    for (int i = 0; i < VALUES; ++i) vector.element[i] = Stored<C>::of(LARGEST > 0.0f ? values[i] * factor : values[i]);
    const int first = lane_id() * VALUES;
    if constexpr (ALIGNED) {
        if (first < head_dim) *reinterpret_cast<StoredVector<C, VALUES>*>(row + first) = vector;
    } else {
#pragma unroll
        for (int i = 0; i < VALUES; ++i)
            if (first + i < head_dim) row[first + i] = vector.element[i];
    }
}
