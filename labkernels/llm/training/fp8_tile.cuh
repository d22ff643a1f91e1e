// What the kernels that make 8-bit floats share: packing, 4 x 4 bytes turned round, and the largest number of a grid.
#pragma once
#include "pack.cuh"
#include "vector.cuh"
#include "warp.cuh"

template <bool E5M2>
__device__ __forceinline__ unsigned pack4(float a, float b, float c, float d) {
    return E5M2 ? pack_e5m2x4(a, b, c, d) : pack_e4m3x4(a, b, c, d);
}

// out[i] has byte i of in[0], in[1], in[2], in[3].
__device__ __forceinline__ void turn(const unsigned (&in)[4], unsigned (&out)[4]) {
    const unsigned a = __byte_perm(in[0], in[1], 0x5140), b = __byte_perm(in[2], in[3], 0x5140);
    const unsigned c = __byte_perm(in[0], in[1], 0x7362), d = __byte_perm(in[2], in[3], 0x7362);
    out[0] = __byte_perm(a, b, 0x5410);
    out[1] = __byte_perm(a, b, 0x7632);
    out[2] = __byte_perm(c, d, 0x5410);
    out[3] = __byte_perm(c, d, 0x7632);
}

// 8 numbers times factor, as 2 words.
template <bool E5M2>
__device__ __forceinline__ uint2 pack8(const float (&v)[8], float factor) {
    return make_uint2(pack4<E5M2>(v[0] * factor, v[1] * factor, v[2] * factor, v[3] * factor),
                      pack4<E5M2>(v[4] * factor, v[5] * factor, v[6] * factor, v[7] * factor));
}

// The larger of `seen` and the absolute values of v.
__device__ __forceinline__ float larger(float seen, const float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) seen = fmaxf(seen, fabsf(v[i]));
    return seen;
}

// *largest becomes the largest number of all threads of the grid and its own, if it is not null. Floats of at least 0 are ordered as their
// bits are; NaN is not seen. All 256 threads call it; `shared` has 8 floats that nobody else uses.
__device__ __forceinline__ void leave_largest(float* largest, float seen, float* shared) {
    if (largest == nullptr) return;
    seen = warp_max(seen);
    if (lane_id() == 0) shared[warp_id()] = seen;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int i = 1; i < 8; ++i) seen = fmaxf(seen, shared[i]);
    if (seen > *largest) atomicMax(reinterpret_cast<int*>(largest), __float_as_int(seen));  // seldom: it only grows
}
