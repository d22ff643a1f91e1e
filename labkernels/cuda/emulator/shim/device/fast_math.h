// The fast-math intrinsics. A GPU computes them with its special function unit and loses some bits; here they are as
// accurate as the C library's functions, so a kernel that is right by a hair in the emulator may miss on a GPU.
#pragma once
#include "special_functions.h"

// The C library's header declares several of these names as its own, hence `noexcept` and no `static`.
inline float __expf(float x) noexcept { return std::exp(x); }
inline float __exp10f(float x) noexcept { return exp10f(x); }
inline float __logf(float x) noexcept { return std::log(x); }
inline float __log2f(float x) noexcept { return std::log2(x); }
inline float __log10f(float x) noexcept { return std::log10(x); }
inline float __sinf(float x) noexcept { return std::sin(x); }
inline float __cosf(float x) noexcept { return std::cos(x); }
inline float __tanf(float x) noexcept { return std::tan(x); }
inline float __tanhf(float x) noexcept { return std::tanh(x); }
inline void __sincosf(float x, float* sine, float* cosine) noexcept { *sine = std::sin(x); *cosine = std::cos(x); }

// exp2(y log2(x)), so negative x gives NaN even for whole y.
inline float __powf(float x, float y) noexcept { return static_cast<float>(std::exp2(y * std::log2(static_cast<double>(x)))); }

// Beyond 2^126 the GPU's reciprocal underflows to zero.
LK_DEVICE float __fdividef(float x, float y) {
    const float size = std::fabs(y);
    if (size > 0x1p126f && size <= std::numeric_limits<float>::max()) return std::isinf(x) ? NAN : std::copysign(0.0f, x * std::copysign(1.0f, y));
    return x / y;
}

// Into [0, 1]; NaN becomes 0.
LK_DEVICE float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
