// Stored elements made into operands of mma.sync: registers that hold two of T, the type that is multiplied.
//
// pair<T, C, A, B>(a, b): element A of the word a in the low half, element B of the word b in the high one. A word of 16-bit elements holds two,
// one of 8-bit elements four. 8-bit elements become T exactly, by bit tricks: a conversion instruction does 16 a cycle, logic 64.
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

template <class T, class C, int A, int B>
struct PairOf {  // C is T
    static __device__ __forceinline__ unsigned of(unsigned a, unsigned b) { return prmt(a, b, (A ? 0x0032 : 0x0010) | (B ? 0x7600 : 0x5400)); }
};

// 0x6400 | u is the half 1024 + u, for u up to 1023; with the sign bit turned round, u is value + 128.
template <int A, int B>
struct PairOf<__half, signed char, A, B> {
    static __device__ __forceinline__ unsigned of(unsigned a, unsigned b) {
        const unsigned bytes = prmt(a, b, A | (4 + B) << 8);  // in bytes 0 and 2; the others are masked away
        const unsigned shifted = lop3<(LOP3_A & LOP3_B) ^ LOP3_C>(bytes, 0x00ff00ffu, 0x64806480u);
        return as_bits(__hsub2(as_pair<__half2>(shifted), as_pair<__half2>(0x64806480u)));
    }
};

// 0x4300 | u is the bfloat16 128 + u, for u up to 127; 0x4300 | 0x80 is 256. The sign bit counts -128.
template <int A, int B>
struct PairOf<__nv_bfloat16, signed char, A, B> {
    static __device__ __forceinline__ unsigned of(unsigned a, unsigned b) {
        const unsigned bytes = prmt(a, b, A | (4 + B) << 8);
        const unsigned rest = lop3<(LOP3_A & LOP3_B) | LOP3_C>(bytes, 0x007f007fu, 0x43004300u);
        const unsigned sign = lop3<(LOP3_A & LOP3_B) | LOP3_C>(bytes, 0x00800080u, 0x43004300u);
        return as_bits(__hsub2(as_pair<__nv_bfloat162>(rest), as_pair<__nv_bfloat162>(sign)));
    }
};

template <int A, int B>
struct PairOf<__half, __nv_fp8_e4m3, A, B> {
    static __device__ __forceinline__ unsigned of(unsigned a, unsigned b) {
        return unpack_e4m3x2(static_cast<unsigned short>(prmt(a, b, A | (4 + B) << 4)));
    }
};

// Sign, exponent and fraction go where bfloat16 has them; its exponent counts from -127, e4m3's from -7: 2^120 makes up for it, of subnormals too.
// (A NaN becomes 480: nothing that was stored from finite values is one.)
template <int A, int B>
struct PairOf<__nv_bfloat16, __nv_fp8_e4m3, A, B> {
    static __device__ __forceinline__ unsigned of(unsigned a, unsigned b) {
        const unsigned bytes = prmt(a, b, A << 4 | (4 + B) << 12);  // in bytes 1 and 3
        const unsigned bits = (bytes & 0x80008000u) | (bytes >> 4 & 0x07f007f0u);
        return as_bits(__hmul2(as_pair<__nv_bfloat162>(bits), as_pair<__nv_bfloat162>(0x7b807b80u)));
    }
};

template <class T, class C, int A, int B>
__device__ __forceinline__ unsigned pair(unsigned a, unsigned b) { return PairOf<T, C, A, B>::of(a, b); }

// The sum of the two numbers in a register.
template <class T>
__device__ float sum_of_pair(unsigned bits);
template <>
__device__ __forceinline__ float sum_of_pair<__nv_bfloat16>(unsigned bits) { return __uint_as_float(bits << 16) + __uint_as_float(bits & 0xffff0000u); }
template <>
__device__ __forceinline__ float sum_of_pair<__half>(unsigned bits) {
    const float2 both = __half22float2(as_pair<__half2>(bits));
    return both.x + both.y;
}
