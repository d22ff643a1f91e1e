// Conversions between integers and floating point with a rounding mode: __float2int_rz and its family.
// Values that do not fit saturate, and NaN becomes what PTX's cvt makes of it.
#pragma once
#include "bits.h"

namespace lk {

enum class Round { nearest, zero, up, down };       // CUDA's suffixes _rn, _rz, _ru, _rd

template <class F> LK_DEVICE F to_whole(F value, Round round) {
    switch (round) {
        case Round::zero: return std::trunc(value);
        case Round::up: return std::ceil(value);
        case Round::down: return std::floor(value);
        default: return std::nearbyint(value);
    }
}

template <class I, class F> LK_DEVICE I to_integer(F value, Round round) {
    using Limits = std::numeric_limits<I>;
    constexpr bool zero_for_nan = sizeof(F) < 8 && sizeof(I) < 8;
    if (value != value) return zero_for_nan ? I(0) : static_cast<I>(I(1) << (Limits::digits - !Limits::is_signed));
    const F whole = to_whole(value, round);
    if (whole >= std::ldexp(F(1), Limits::digits)) return Limits::max();
    if (whole < static_cast<F>(Limits::min())) return Limits::min();
    return static_cast<I>(whole);
}

// `nearest`, which approximates the exact value from the side of `error` (exact minus nearest, of any size), moved to
// its neighbour where the rounding mode wants the other one.
template <class F> LK_DEVICE F round_from_nearest(F nearest, double error, Round round) {
    const F infinity = std::numeric_limits<F>::infinity();
    const bool towards_zero = round == Round::zero;
    if (error > 0 && (round == Round::up || (towards_zero && nearest < 0))) return std::nextafter(nearest, infinity);
    if (error < 0 && (round == Round::down || (towards_zero && nearest > 0))) return std::nextafter(nearest, -infinity);
    return nearest;
}

template <class F, class I> LK_DEVICE F from_integer(I value, Round round) {
    const F nearest = static_cast<F>(value);
    const __int128 error = static_cast<__int128>(value) - static_cast<__int128>(nearest);
    return round_from_nearest(nearest, error > 0 ? 1.0 : error < 0 ? -1.0 : 0.0, round);
}

LK_DEVICE float to_float(double value, Round round) {
    const float nearest = static_cast<float>(value);
    if (std::isinf(nearest) && !std::isinf(value)) {            // finite but too large: the largest float, or infinity
        const float largest = std::copysign(std::numeric_limits<float>::max(), nearest);
        const bool away = round == Round::nearest || (round == Round::up && value > 0) || (round == Round::down && value < 0);
        return away ? nearest : largest;
    }
    return round_from_nearest(nearest, value - static_cast<double>(nearest), round);
}

}  // namespace lk

#define LK_EACH_ROUND(X, ...) \
    X(rn, nearest, __VA_ARGS__) X(rz, zero, __VA_ARGS__) X(ru, up, __VA_ARGS__) X(rd, down, __VA_ARGS__)

#define LK_TO_INTEGER(suffix, mode, name, Integer, Float) \
    LK_DEVICE Integer name##_##suffix(Float x) { return lk::to_integer<Integer>(x, lk::Round::mode); }
LK_EACH_ROUND(LK_TO_INTEGER, __float2int, int, float)
LK_EACH_ROUND(LK_TO_INTEGER, __float2uint, unsigned, float)
LK_EACH_ROUND(LK_TO_INTEGER, __float2ll, long long, float)
LK_EACH_ROUND(LK_TO_INTEGER, __float2ull, unsigned long long, float)
LK_EACH_ROUND(LK_TO_INTEGER, __double2int, int, double)
LK_EACH_ROUND(LK_TO_INTEGER, __double2uint, unsigned, double)
LK_EACH_ROUND(LK_TO_INTEGER, __double2ll, long long, double)
LK_EACH_ROUND(LK_TO_INTEGER, __double2ull, unsigned long long, double)
#undef LK_TO_INTEGER

#define LK_FROM_INTEGER(suffix, mode, name, Float, Integer) \
    LK_DEVICE Float name##_##suffix(Integer x) { return lk::from_integer<Float>(x, lk::Round::mode); }
LK_EACH_ROUND(LK_FROM_INTEGER, __int2float, float, int)
LK_EACH_ROUND(LK_FROM_INTEGER, __uint2float, float, unsigned)
LK_EACH_ROUND(LK_FROM_INTEGER, __ll2float, float, long long)
LK_EACH_ROUND(LK_FROM_INTEGER, __ull2float, float, unsigned long long)
LK_EACH_ROUND(LK_FROM_INTEGER, __ll2double, double, long long)
LK_EACH_ROUND(LK_FROM_INTEGER, __ull2double, double, unsigned long long)
#undef LK_FROM_INTEGER
LK_DEVICE double __int2double_rn(int x) { return x; }
LK_DEVICE double __uint2double_rn(unsigned x) { return x; }

#define LK_TO_FLOAT(suffix, mode, ...) \
    LK_DEVICE float __double2float_##suffix(double x) { return lk::to_float(x, lk::Round::mode); }
LK_EACH_ROUND(LK_TO_FLOAT, ~)
#undef LK_TO_FLOAT
