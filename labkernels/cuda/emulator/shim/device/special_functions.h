// CUDA's math functions that C's <math.h> lacks: rsqrt, sinpi, erfinv, the normal distribution, norms of 3 and 4 numbers.
// The float versions compute in double and round once. `noexcept` and no `static`: newer C libraries declare some of them.
#pragma once
#include "types.h"

#define LK_UNARY(name, expression) \
    inline double name(double x) noexcept { return expression; } \
    inline float name##f(float value) noexcept { const double x = value; return static_cast<float>(expression); }

LK_UNARY(rsqrt, 1 / std::sqrt(x))
LK_UNARY(rcbrt, 1 / std::cbrt(x))

namespace lk {

// sin(pi x) and cos(pi x): the period is taken off exactly, before pi makes it inexact.
inline double sine_of_pi(double x) {
    const double rest = std::remainder(x, 2.0);            // in [-1, 1]
    if (rest == 0 || std::fabs(rest) == 1) return std::copysign(0.0, x);
    const double folded = std::fabs(rest) > 0.5 ? std::copysign(1 - std::fabs(rest), rest) : rest;
    return std::sin(M_PI * folded);
}
inline double cosine_of_pi(double x) {
    const double rest = std::fabs(std::remainder(x, 2.0));
    return rest <= 0.25 ? std::cos(M_PI * rest) : std::sin(M_PI * (0.5 - rest));
}

// The x with erfc(x) = y, by Newton's method (Halley's variant) from Winitzki's approximation.
inline double inverse_erfc(double y) {
    if (y == 0 || y == 2) return y == 0 ? INFINITY : -INFINITY;
    if (!(y > 0 && y < 2)) return NAN;
    const double tail = y < 1 ? y : 2 - y;                  // the solution for y > 1 is minus the one for 2 - y
    if (tail == 1) return 0;
    const double log_term = std::log(tail * (2 - tail));
    const double half = 2 / (M_PI * 0.147) + log_term / 2;
    double x = std::sqrt(std::sqrt(half * half - log_term / 0.147) - half);
    for (int step = 0; step < 4; ++step) {
        const double error = (std::erfc(x) - tail) / (-M_2_SQRTPI * std::exp(-x * x));
        const double next = x - error / (1 + x * error);
        if (!std::isfinite(next)) break;                    // both terms underflowed: x is as good as it gets
        x = next;
    }
    return y < 1 ? x : -x;
}
// Near zero erfc(x) = 1 - y has lost y's last digits, so one more Newton step on erf itself.
inline double inverse_erf(double y) {
    if (std::fabs(y) > 0.5) return std::copysign(inverse_erfc(1 - std::fabs(y)), y);
    double x = inverse_erfc(1 - y);
    x -= (std::erf(x) - y) / (M_2_SQRTPI * std::exp(-x * x));
    return y == 0 ? y : x;
}
// exp(x^2) erfc(x): the asymptotic series where exp overflows before erfc vanishes.
inline double scaled_erfc(double x) {
    if (x < 25) return std::exp(x * x) * std::erfc(x);
    const double r = 1 / (x * x);
    return M_2_SQRTPI / 2 / x * (1 - r / 2 * (1 - 1.5 * r * (1 - 2.5 * r)));
}

}  // namespace lk

LK_UNARY(sinpi, lk::sine_of_pi(x))
LK_UNARY(cospi, lk::cosine_of_pi(x))
LK_UNARY(erfinv, lk::inverse_erf(x))
LK_UNARY(erfcinv, lk::inverse_erfc(x))
LK_UNARY(erfcx, lk::scaled_erfc(x))
LK_UNARY(normcdf, 0.5 * std::erfc(-x * M_SQRT1_2))
LK_UNARY(normcdfinv, -M_SQRT2 * lk::inverse_erfc(2 * x))
#undef LK_UNARY

inline void sincospi(double x, double* sine, double* cosine) noexcept { *sine = sinpi(x); *cosine = cospi(x); }
inline void sincospif(float x, float* sine, float* cosine) noexcept { *sine = sinpif(x); *cosine = cospif(x); }

inline double rhypot(double x, double y) noexcept { return 1 / std::hypot(x, y); }
inline double norm3d(double x, double y, double z) noexcept { return std::hypot(x, y, z); }
inline double norm4d(double x, double y, double z, double w) noexcept { return std::hypot(std::hypot(x, y), std::hypot(z, w)); }
inline double rnorm3d(double x, double y, double z) noexcept { return 1 / norm3d(x, y, z); }
inline double rnorm4d(double x, double y, double z, double w) noexcept { return 1 / norm4d(x, y, z, w); }
inline float rhypotf(float x, float y) noexcept { return static_cast<float>(rhypot(x, y)); }
inline float norm3df(float x, float y, float z) noexcept { return static_cast<float>(norm3d(x, y, z)); }
inline float norm4df(float x, float y, float z, float w) noexcept { return static_cast<float>(norm4d(x, y, z, w)); }
inline float rnorm3df(float x, float y, float z) noexcept { return static_cast<float>(rnorm3d(x, y, z)); }
inline float rnorm4df(float x, float y, float z, float w) noexcept { return static_cast<float>(rnorm4d(x, y, z, w)); }

// CUDA overloads these for float, as C++ does for the functions of <cmath>.
inline float rsqrt(float x) noexcept { return rsqrtf(x); }
inline float rcbrt(float x) noexcept { return rcbrtf(x); }
inline float sinpi(float x) noexcept { return sinpif(x); }
inline float cospi(float x) noexcept { return cospif(x); }
inline float exp10(float x) noexcept { return exp10f(x); }
