// Arithmetic with a rounding mode in its name: __fadd_rz, __fmaf_rn, __drcp_ru ...
#pragma once
#include <cfenv>
#include "convert.h"

namespace lk {

// Keeps the compiler from moving a value's computation across a change of the rounding mode, and from fusing it with
// another operation.
template <class F> LK_DEVICE void settle(F& value) {
#if defined(__x86_64__)
    __asm__ volatile("" : "+x"(value) : : "memory");
#elif defined(__aarch64__)
    __asm__ volatile("" : "+w"(value) : : "memory");
#else
    volatile F copy = value;
    value = copy;
#endif
}

constexpr int fenv_mode(Round round) {
    return round == Round::up ? FE_UPWARD : round == Round::down ? FE_DOWNWARD : round == Round::zero ? FE_TOWARDZERO : FE_TONEAREST;
}

template <Round round, class F, class Operation> inline F rounded(Operation operation, F a, F b = 0, F c = 0) {
    if (round != Round::nearest) std::fesetround(fenv_mode(round));
    settle(a), settle(b), settle(c);
    F result = operation(a, b, c);
    settle(result);
    if (round != Round::nearest) std::fesetround(FE_TONEAREST);
    return result;
}

}  // namespace lk

#define LK_ROUNDED(mode, Float, expression, ...) \
    { return lk::rounded<lk::Round::mode>([](Float a, Float b, Float c) { (void)b, (void)c; return static_cast<Float>(expression); }, __VA_ARGS__); }

#define LK_ARITHMETIC(suffix, mode, letter, Float, ...) \
    LK_DEVICE Float __##letter##add_##suffix(Float x, Float y) LK_ROUNDED(mode, Float, a + b, x, y) \
    LK_DEVICE Float __##letter##sub_##suffix(Float x, Float y) LK_ROUNDED(mode, Float, a - b, x, y) \
    LK_DEVICE Float __##letter##mul_##suffix(Float x, Float y) LK_ROUNDED(mode, Float, a * b, x, y) \
    LK_DEVICE Float __##letter##div_##suffix(Float x, Float y) LK_ROUNDED(mode, Float, a / b, x, y) \
    LK_DEVICE Float __##letter##rcp_##suffix(Float x) LK_ROUNDED(mode, Float, 1 / a, x) \
    LK_DEVICE Float __##letter##sqrt_##suffix(Float x) LK_ROUNDED(mode, Float, std::sqrt(a), x)
LK_EACH_ROUND(LK_ARITHMETIC, f, float)
LK_EACH_ROUND(LK_ARITHMETIC, d, double)
#undef LK_ARITHMETIC

#define LK_FMA(suffix, mode, ...) \
    LK_DEVICE float __fmaf_##suffix(float x, float y, float z) LK_ROUNDED(mode, float, std::fma(a, b, c), x, y, z) \
    LK_DEVICE float __fmaf_ieee_##suffix(float x, float y, float z) LK_ROUNDED(mode, float, std::fma(a, b, c), x, y, z) \
    LK_DEVICE double __fma_##suffix(double x, double y, double z) LK_ROUNDED(mode, double, std::fma(a, b, c), x, y, z)
LK_EACH_ROUND(LK_FMA, ~)
#undef LK_FMA
#undef LK_ROUNDED
#undef LK_EACH_ROUND

LK_DEVICE float __frsqrt_rn(float x) { return static_cast<float>(1 / std::sqrt(static_cast<double>(x))); }
