// Float32 numbers as two halves each, x = scale * (high + low), for tensor cores to multiply: high high + high low + low high.
//
// The scale is a power of two, so that it rounds nothing: power_of_two_below brings the largest of the numbers that share it between 2^14 and
// 2^15. Then high, the nearest half, keeps 11 bits, and low, the half nearest to what is left, 11 more, one of them its sign. That goes for
// numbers down to 2^-17 of the largest; below, where low is a denormal half, less than 2^-39 of the largest is lost. Infinity and NaN have
// low = 0. Only zero has high = 0.
#pragma once
#include <cuda_fp16.h>
#include <math_constants.h>

#include "pack.cuh"

// What numbers are divided by, if the largest of them is this: 2^14 below its power of two, but a normal number.
__device__ __forceinline__ float power_of_two_below(float largest) { return __int_as_float(max((__float_as_int(largest) >> 23) - 14, 1) << 23); }

// Of a power of two, of either sign.
__device__ __forceinline__ float reciprocal(float scale) { return __int_as_float((254 << 23) - (__float_as_int(scale) & 0x7fffffff)); }

// Two scaled numbers as two halves each.
__device__ __forceinline__ void split(float x0, float x1, unsigned& high, unsigned& low) {
    const auto nearest = [](float x) {
        const __half half = __float2half_rn(x);
        return x != 0.0f && __half2float(half) == 0.0f ? copysignf(0x1p-24f, x) : __half2float(half);  // infinity times it is no NaN
    };
    const auto rest = [](float x, float half) { return fabsf(x) < CUDART_INF_F ? x - half : 0.0f; };
    const float h0 = nearest(x0), h1 = nearest(x1);
    high = pack_f16x2(h0, h1);
    low = pack_f16x2(rest(x0, h0), rest(x1, h1));
}

// Eight neighbours of a row, of which the first `left` are there. WIDTH is how many can be read at a time: 4 or 1.
template <int WIDTH>
__device__ __forceinline__ void load_unit(const float* from, int left, float (&x)[8]) {
    if (WIDTH == 4 && left >= 8) {
        const float4 first = reinterpret_cast<const float4*>(from)[0], second = reinterpret_cast<const float4*>(from)[1];
        x[0] = first.x, x[1] = first.y, x[2] = first.z, x[3] = first.w;
        x[4] = second.x, x[5] = second.y, x[6] = second.z, x[7] = second.w;
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = i < left ? from[i] : 0.0f;
    }
}

__device__ __forceinline__ void store_unit(__half* high, __half* low, const float (&x)[8], float factor) {
    uint4 highs, lows;
    split(factor * x[0], factor * x[1], highs.x, lows.x);
    split(factor * x[2], factor * x[3], highs.y, lows.y);
    split(factor * x[4], factor * x[5], highs.z, lows.z);
    split(factor * x[6], factor * x[7], highs.w, lows.w);
    *reinterpret_cast<uint4*>(high) = highs;
    *reinterpret_cast<uint4*>(low) = lows;
}
