// Whole numbers of 8 and of 4 bits, times x in whole numbers: bytes go to the tensor cores as they are stored, or after three instructions for eight.
//
// To make 16-bit floating-point numbers of four bits takes seven instructions for eight of them, and at the speed of memory an SM has 200 in all for
// 2048: the stream would wait for its own arithmetic. mma.sync also multiplies bytes, exactly, but then x must be bytes, too. It has columns to
// spare: x is rounded to 16 bits, round(x / scale), with a scale for each group of a step (of 128 or 64 numbers), and its high and its low
// digit are two columns. 256 * high + low is put together when the integers become float32, once a step. What x loses, 1 / 65000 of the largest in its
// group, is far less than a bfloat16 loses (1 / 512 of itself). A group with NaN or infinity has the scale NaN, and so do all sums with it.
#pragma once
#include "../quant/gemv_formats.cuh"
#include "mma.cuh"
#include "pack.cuh"
#include "warp.cuh"

constexpr float LARGEST_DIGITS = 32512.0f;  // 127 * 256: the low digit is from -128 to 127
constexpr float LEAST_LARGEST = 1e-30f;     // groups whose numbers are all smaller count as zero

// Bytes with a sign, and a scale a row of the weight.
template <class Element>
struct Bytes {
    using T = Element;
    using Table = NoTable;
    static constexpr bool GROUPED = false, ASYMMETRIC = false;
    static constexpr int PIECES = 2;
    static __device__ Table prepare(unsigned char*, const float*) { return {}; }
    static __device__ void order(const int (&in)[8], int (&out)[8]) {
#pragma unroll
        for (int e = 0; e < 8; ++e) out[e] = in[e];
    }
    // A piece of 8 numbers a row, of rows r (up) and r + 8 (low), as an A fragment.
    static __device__ void fragment(const uint4& up, const uint4& low, int piece, unsigned (&a)[4]) {
        a[0] = word_of(up, 2 * piece);
        a[1] = word_of(low, 2 * piece);
        a[2] = word_of(up, 2 * piece + 1);
        a[3] = word_of(low, 2 * piece + 1);
    }
};

// Numbers from 0 to 15, and a scale and a zero for each group of 128.
template <class Element>
struct Nibbles {
    using T = Element;
    using Table = NoTable;
    static constexpr bool GROUPED = true, ASYMMETRIC = true;
    static constexpr int PIECES = 4;
    static __device__ Table prepare(unsigned char*, const float*) { return {}; }
    static __device__ void order(const int (&in)[8], int (&out)[8]) {  // a word's even nibbles are k = 0, 4, 1 and 5, its odd ones 2, 6, 3 and 7
#pragma unroll
        for (int e = 0; e < 8; ++e) out[e] = in[e % 2 * 4 + e / 4 * 2 + e % 4 / 2];
    }
    static __device__ void fragment(const uint4& up, const uint4& low, int piece, unsigned (&a)[4]) {
        a[0] = word_of(up, piece) & 0x0f0f0f0fu;
        a[1] = word_of(low, piece) & 0x0f0f0f0fu;
        a[2] = word_of(up, piece) >> 4 & 0x0f0f0f0fu;
        a[3] = word_of(low, piece) >> 4 & 0x0f0f0f0fu;
    }
};

struct GroupFactor {
    float scale, sum;  // of a group of x: what a 1 stands for, and the sum of its numbers
};

// Eight numbers of x, of a group that 4 * PIECES neighbouring lanes share, to their digits, ordered as Format's fragments are. All lanes call.
template <class Format>
__device__ __forceinline__ GroupFactor digits_of(const float (&values)[8], uint2& high, uint2& low) {
    unsigned most = 0;  // of the bits without the sign, which are ordered as the numbers are, infinity and NaN above all
#pragma unroll
    for (int e = 0; e < 8; ++e) most = max(most, __float_as_uint(fabsf(values[e])));
#pragma unroll
    for (int distance = 1; distance < 4 * Format::PIECES; distance *= 2) most = max(most, __shfl_xor_sync(FULL_WARP, most, distance));
    const float largest = __uint_as_float(most);
    const bool finite = most < 0x7f800000u, counts = finite && largest > LEAST_LARGEST;
    const float inverse = counts ? __fdividef(LARGEST_DIGITS, largest) : 0.0f;
    const float scale = counts ? largest * (1.0f / LARGEST_DIGITS) : finite ? 0.0f : __uint_as_float(0x7fffffffu);
    int whole[8], ordered[8], sum = 0;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
        whole[e] = __float2int_rn(values[e] * inverse);
        sum += whole[e];
    }
    Format::order(whole, ordered);
    int up[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
        up[e] = (ordered[e] + 128) >> 8;
        ordered[e] -= up[e] * 256;
    }
    high = {pack_s8x4(up[0], up[1], up[2], up[3]), pack_s8x4(up[4], up[5], up[6], up[7])};
    low = {pack_s8x4(ordered[0], ordered[1], ordered[2], ordered[3]), pack_s8x4(ordered[4], ordered[5], ordered[6], ordered[7])};
    if (Format::ASYMMETRIC) {
#pragma unroll
        for (int distance = 1; distance < 4 * Format::PIECES; distance *= 2) sum += __shfl_xor_sync(FULL_WARP, sum, distance);
    }
    return {scale, scale * static_cast<float>(sum)};
}
