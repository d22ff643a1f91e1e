// What v4 and v5 share: stored numbers become pairs of 16-bit numbers in registers, as the tensor cores' A operand wants them.
//
// Four bits, pair t of a word (formats.py): (word >> 4 t) & 0x000f000f is k = 2t in the low half, k = 2t + 1 in the high one. Or-ed into
// bfloat16's 128 (half's 1024), whose last binary digit is worth 1, it is 128 + q without any conversion, and 128 + q - (128 + zero) is exact.
// A codebook's pairs are read from a table of 256 words in shared memory, one for each two codes, of which groups of lanes have their own.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "bits.cuh"
#include "pack.cuh"

enum class Scheme : int { kInt4, kCodebook, kInt8, kFp8 };

template <class T> struct Pair;
template <> struct Pair<__nv_bfloat16> {
    using Two = __nv_bfloat162;
    static constexpr unsigned MAGIC = 0x43004300;
};
template <> struct Pair<__half> {
    using Two = __half2;
    static constexpr unsigned MAGIC = 0x64006400;
};

template <class T>
__device__ __forceinline__ typename Pair<T>::Two as_two(unsigned word) {
    typename Pair<T>::Two two;
    memcpy(&two, &word, 4);
    return two;
}
template <class Two>
__device__ __forceinline__ unsigned as_word(Two two) {
    unsigned word;
    memcpy(&word, &two, 4);
    return word;
}
template <class T>
__device__ __forceinline__ unsigned minus(unsigned a, unsigned b) { return as_word(__hsub2(as_two<T>(a), as_two<T>(b))); }
template <class T>
__device__ __forceinline__ unsigned times(unsigned a, unsigned b) { return as_word(__hmul2(as_two<T>(a), as_two<T>(b))); }

// A group's scale and zero, each twice, as a lane of a row keeps them; the zero moved by what MAGIC adds.
struct Factor {
    unsigned scale, zero;
};
template <class T>
__device__ __forceinline__ Factor factor_of(unsigned word) {  // bfloat16s: the scale in the low half, the zero in the high one
    if constexpr (Pair<T>::MAGIC == 0x43004300) {
        return {prmt(word, 0, 0x1010), as_word(__hadd2(as_two<T>(prmt(word, 0, 0x3232)), as_two<T>(Pair<T>::MAGIC)))};
    } else {
        const float scale = __uint_as_float(word << 16), zero = 1024.0f + __uint_as_float(word & 0xffff0000u);
        return {pack_pair<T>(scale, scale), pack_pair<T>(zero, zero)};
    }
}

// The pair whose four-bit numbers stand at bits 0-3 and 16-19 of `moved`.
template <class T>
__device__ __forceinline__ unsigned int4_pair(unsigned moved, const Factor& factor) {
    return times<T>(minus<T>(lop3<(LOP3_A & LOP3_B) | LOP3_C>(moved, 0x000f000fu, Pair<T>::MAGIC), factor.zero), factor.scale);
}

// Two signed bytes, `first` and `second` of a word whose bytes have been xor-ed with 0x80: both are exact in T.
template <class T, int FIRST, int SECOND>
__device__ __forceinline__ unsigned int8_pair(unsigned unsigned_bytes) {
    if constexpr (Pair<T>::MAGIC == 0x64006400) {
        return minus<T>(prmt(unsigned_bytes, 0x64646464u, 0x4040 | FIRST | SECOND << 8), 0x64806480u);  // 1024 + (128 + q) - 1152
    } else {
        const float first = __uint_as_float(prmt(unsigned_bytes, 0x4b000000u, 0x7440 | FIRST)) - 8388736.0f;  // 2^23 + (128 + q)
        const float second = __uint_as_float(prmt(unsigned_bytes, 0x4b000000u, 0x7440 | SECOND)) - 8388736.0f;
        return prmt(__float_as_uint(first), __float_as_uint(second), 0x7632);
    }
}

// Two e4m3 numbers, the lower two bytes of `bytes`, exact in T.
template <class T>
__device__ __forceinline__ unsigned fp8_pair(unsigned bytes) {
    const unsigned halves = unpack_e4m3x2(static_cast<unsigned short>(bytes));
    if constexpr (Pair<T>::MAGIC == 0x64006400) return halves;
    const float2 wide = __half22float2(as_two<__half>(halves));
    return prmt(__float_as_uint(wide.x), __float_as_uint(wide.y), 0x7632);
}

// The table of pairs: entry e, of codes e % 16 (low half) and e / 16, stands COPIES times, one after the other.
template <class T, int COPIES>
__device__ inline void make_table(unsigned* table, const float* codebook, int thread, int threads) {
    for (int i = thread; i < 256 * COPIES; i += threads) table[i] = pack_pair<T>(codebook[i / COPIES % 16], codebook[i / COPIES / 16]);
}
