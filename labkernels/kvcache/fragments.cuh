// Stored elements made into operands of mma.sync: registers that hold two numbers each, as a fragment wants them.
//
// 16-bit elements are multiplied as they are. 8-bit ones become halves, which hold them exactly, in 1 to 3 instructions a register:
//   int8   0x6400 | u is the half 1024 + u for u up to 1023, and with its sign bit turned round a byte is u = value + 128. One prmt puts two bytes
//          beside two 0x64. Of keys the 1152 too much stays: times the sum of the query it is the same in every score, and leaves with the sum's
//          start (KEY_BIAS). Of values it is subtracted at once: over thousands of tokens it would drown them.
//   e4m3   an instruction of its own from sm_89 on; before, bits are moved.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "bits.cuh"
#include "pack.cuh"

template <class Pair>
__device__ __forceinline__ Pair as_pair(unsigned bits) { return *reinterpret_cast<const Pair*>(&bits); }
template <class Pair>
__device__ __forceinline__ unsigned as_bits(Pair pair) { return *reinterpret_cast<const unsigned*>(&pair); }

// The type that is multiplied where queries are T and the cache holds C.
template <class T, class C>
struct MultipliedOf { using type = __half; };
template <class T>
struct MultipliedOf<T, T> { using type = T; };
template <class T, class C>
using Multiplied = typename MultipliedOf<T, C>::type;

template <class C>
constexpr float KEY_BIAS = 0.0f;  // by which each element of a key is too large in its operand
template <>
constexpr float KEY_BIAS<signed char> = 1152.0f;

constexpr unsigned TURNED = 0x80808080u, THOUSAND = 0x64646464u, BIAS_PAIR = 0x64806480u;

// Two e4m3 numbers, in the lower 16 bits, as two halves.
__device__ __forceinline__ unsigned halves_of_e4m3(unsigned two) {
#if defined(LK_EMULATOR) || __CUDA_ARCH__ >= 890
    return unpack_e4m3x2(static_cast<unsigned short>(two));
#else  // sign, exponent and fraction go where a half has them; its exponent counts from -15, e4m3's from -7: 2^8 makes up for it. (NaN becomes 480.)
    const unsigned bytes = prmt(two, 0u, 0x1404);
    const unsigned bits = (bytes & 0x80008000u) | (bytes >> 1 & 0x3f803f80u);
    return as_bits(__hmul2(as_pair<__half2>(bits), as_pair<__half2>(0x5c005c00u)));
#endif
}

// Four neighbours of a key, in one word: elements 0 and 1, then 2 and 3; with KEY_BIAS.
template <class C>
__device__ __forceinline__ void key_pairs(unsigned (&pairs)[2], unsigned word);
template <>
__device__ __forceinline__ void key_pairs<signed char>(unsigned (&pairs)[2], unsigned word) {
    pairs[0] = prmt(word ^ TURNED, THOUSAND, 0x4140);
    pairs[1] = prmt(word ^ TURNED, THOUSAND, 0x4342);
}
template <>
__device__ __forceinline__ void key_pairs<__nv_fp8_e4m3>(unsigned (&pairs)[2], unsigned word) {
    pairs[0] = halves_of_e4m3(word & 0xffff);
    pairs[1] = halves_of_e4m3(word >> 16);
}

// The same elements of two values: pairs[i] has element i of `first` in its lower half, that of `second` in the upper one.
template <class C>
__device__ __forceinline__ void value_pairs(unsigned (&pairs)[4 / sizeof(C)], unsigned first, unsigned second) {  // 16-bit elements
    pairs[0] = prmt(first, second, 0x5410);
    pairs[1] = prmt(first, second, 0x7632);
}
template <>
__device__ __forceinline__ void value_pairs<signed char>(unsigned (&pairs)[4], unsigned first, unsigned second) {
    const unsigned low = prmt(first ^ TURNED, second ^ TURNED, 0x5140), high = prmt(first ^ TURNED, second ^ TURNED, 0x7362);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const unsigned biased = prmt(i < 2 ? low : high, THOUSAND, i % 2 ? 0x4342 : 0x4140);
        pairs[i] = as_bits(__hsub2(as_pair<__half2>(biased), as_pair<__half2>(BIAS_PAIR)));
    }
}
template <>
__device__ __forceinline__ void value_pairs<__nv_fp8_e4m3>(unsigned (&pairs)[4], unsigned first, unsigned second) {
    const unsigned low = prmt(first, second, 0x5140), high = prmt(first, second, 0x7362);
    pairs[0] = halves_of_e4m3(low & 0xffff);
    pairs[1] = halves_of_e4m3(low >> 16);
    pairs[2] = halves_of_e4m3(high & 0xffff);
    pairs[3] = halves_of_e4m3(high >> 16);
}

// The two numbers in a register, and their sum.
template <class T>
__device__ float2 floats_of(unsigned bits);
template <>
__device__ __forceinline__ float2 floats_of<__nv_bfloat16>(unsigned bits) { return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)}; }
template <>
__device__ __forceinline__ float2 floats_of<__half>(unsigned bits) { return __half22float2(as_pair<__half2>(bits)); }
template <class T>
__device__ __forceinline__ float sum_of_pair(unsigned bits) {
    const float2 both = floats_of<T>(bits);
    return both.x + both.y;
}
