// What NVIDIA's headers keep for the device: fused multiply-add, math functions and integer conversions of half and
// bfloat16 and of their pairs. Every result is rounded once, to nearest even.
#pragma once
#include "convert.h"

namespace lk {

// a * b + c rounded to odd: a double from which any narrower type can still be rounded correctly, because an inexact
// result has its last bit set. The product of two halves or bfloat16s is exact in double; the sum may not be.
LK_DEVICE double multiply_add_to_odd(double a, double b, double c) {
    const double product = a * b;
    const double sum = product + c;
    const double from_c = sum - product;
    const double error = (product - (sum - from_c)) + (c - from_c);
    const std::uint64_t word = bits<std::uint64_t>(sum);
    if (error == 0 || !std::isfinite(sum) || word & 1) return sum;
    return bits<double>((error > 0) == (sum > 0) ? word + 1 : word - 1);
}

LK_DEVICE double saturate(double x) { return x > 0 ? (x < 1 ? x : 1.0) : 0.0; }         // NaN becomes 0
LK_DEVICE double relu(double x) { return x <= 0 ? 0.0 : x; }                            // NaN stays

// An integer as a float rounded to odd, for the directed roundings of bfloat16.
template <class I> LK_DEVICE float integer_to_odd(I value) {
    const float truncated = from_integer<float>(value, Round::zero);
    const bool exact = static_cast<__int128>(truncated) == static_cast<__int128>(value);
    return exact ? truncated : bits<float>(bits<std::uint32_t>(truncated) | 1u);
}

}  // namespace lk

// Half is a type, Pair two of them; widen and narrow convert to float and from double.
#define LK_HALF_FUNCTIONS(Half, Pair, widen, narrow) \
    inline Half __hfma(Half a, Half b, Half c) { return narrow(lk::multiply_add_to_odd(widen(a), widen(b), widen(c))); } \
    inline Half __hfma_sat(Half a, Half b, Half c) { return narrow(lk::saturate(lk::multiply_add_to_odd(widen(a), widen(b), widen(c)))); } \
    inline Half __hfma_relu(Half a, Half b, Half c) { return narrow(lk::relu(lk::multiply_add_to_odd(widen(a), widen(b), widen(c)))); } \
    inline Pair __hfma2(Pair a, Pair b, Pair c) { return Pair(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)); } \
    inline Pair __hfma2_sat(Pair a, Pair b, Pair c) { return Pair(__hfma_sat(a.x, b.x, c.x), __hfma_sat(a.y, b.y, c.y)); } \
    inline Pair __hfma2_relu(Pair a, Pair b, Pair c) { return Pair(__hfma_relu(a.x, b.x, c.x), __hfma_relu(a.y, b.y, c.y)); } \
    inline Pair __hcmadd(Pair a, Pair b, Pair c) {                            /* complex a * b + c */ \
        const Pair sum(__hfma(a.x, b.x, c.x), __hfma(a.x, b.y, c.y)); \
        return Pair(__hfma(__hneg(a.y), b.y, sum.x), __hfma(a.y, b.x, sum.y)); \
    } \
    LK_HALF_UNARY(Half, Pair, widen, narrow, sqrt, std::sqrt(x)) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, rsqrt, 1 / std::sqrt(x)) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, rcp, 1 / x) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, exp, std::exp(x)) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, exp2, std::exp2(x)) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, exp10, ::exp10(x)) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, log, std::log(x)) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, log2, std::log2(x)) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, log10, std::log10(x)) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, sin, std::sin(x)) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, cos, std::cos(x)) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, tanh, std::tanh(x)) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, tanh_approx, std::tanh(x)) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, trunc, std::trunc(x)) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, ceil, std::ceil(x)) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, floor, std::floor(x)) \
    LK_HALF_UNARY(Half, Pair, widen, narrow, rint, std::nearbyint(x))

#define LK_HALF_UNARY(Half, Pair, widen, narrow, name, expression) \
    inline Half h##name(Half value) { const double x = widen(value); return narrow(expression); } \
    inline Pair h2##name(Pair value) { return Pair(h##name(value.x), h##name(value.y)); }

LK_HALF_FUNCTIONS(__half, __half2, __half2float, __double2half)
LK_HALF_FUNCTIONS(__nv_bfloat16, __nv_bfloat162, __bfloat162float, __double2bfloat16)
#undef LK_HALF_FUNCTIONS
#undef LK_HALF_UNARY

// To integers. NVIDIA's headers give _rz themselves.
#define LK_HALF_TO_INTEGER(Half, widen, prefix, name, Integer) \
    inline Integer prefix##name##_rn(Half x) { return lk::to_integer<Integer>(widen(x), lk::Round::nearest); } \
    inline Integer prefix##name##_ru(Half x) { return lk::to_integer<Integer>(widen(x), lk::Round::up); } \
    inline Integer prefix##name##_rd(Half x) { return lk::to_integer<Integer>(widen(x), lk::Round::down); }
#define LK_HALF_TO_INTEGERS(Half, widen, prefix) \
    LK_HALF_TO_INTEGER(Half, widen, prefix, short, short) \
    LK_HALF_TO_INTEGER(Half, widen, prefix, ushort, unsigned short) \
    LK_HALF_TO_INTEGER(Half, widen, prefix, int, int) \
    LK_HALF_TO_INTEGER(Half, widen, prefix, uint, unsigned) \
    LK_HALF_TO_INTEGER(Half, widen, prefix, ll, long long) \
    LK_HALF_TO_INTEGER(Half, widen, prefix, ull, unsigned long long)
LK_HALF_TO_INTEGERS(__half, __half2float, __half2)
LK_HALF_TO_INTEGERS(__nv_bfloat16, __bfloat162float, __bfloat162)
#undef LK_HALF_TO_INTEGERS
#undef LK_HALF_TO_INTEGER

// From integers, to bfloat16 in the directions that its header lacks.
#define LK_INTEGER_TO_BFLOAT16(name, Integer) \
    inline __nv_bfloat16 __##name##2bfloat16_rz(Integer x) { return __float2bfloat16_rz(lk::integer_to_odd(x)); } \
    inline __nv_bfloat16 __##name##2bfloat16_ru(Integer x) { return __float2bfloat16_ru(lk::integer_to_odd(x)); } \
    inline __nv_bfloat16 __##name##2bfloat16_rd(Integer x) { return __float2bfloat16_rd(lk::integer_to_odd(x)); }
LK_INTEGER_TO_BFLOAT16(short, short)
LK_INTEGER_TO_BFLOAT16(ushort, unsigned short)
LK_INTEGER_TO_BFLOAT16(int, int)
LK_INTEGER_TO_BFLOAT16(uint, unsigned)
LK_INTEGER_TO_BFLOAT16(ll, long long)
LK_INTEGER_TO_BFLOAT16(ull, unsigned long long)
#undef LK_INTEGER_TO_BFLOAT16
