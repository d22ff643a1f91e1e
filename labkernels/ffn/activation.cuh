// What stands between the two products of a feed-forward network, and its slope. ACTIVATION counts as `enum class Activation` of
// epilogue.cuh: kGelu, kGeluTanh, and kSilu for SwiGLU, where silu(gate) is multiplied by a second sum, up.
//
//   gelu        x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2              slope Phi(x) + x phi(x), phi(x) = e^(-x^2/2) / sqrt(2 pi)
//   gelu_tanh   x/2 (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3)       slope (1 + tanh u)/2 + x/2 (1 - tanh^2 u) u'
//   silu        x s(x), s(x) = 1 / (1 + e^-x)                             slope s(x) (1 + x (1 - s(x)))
//
// T is the type that the result is rounded to. For bfloat16 tanh is the one instruction tanh.approx.f32: it errs by 2^-11 of itself, so
// that gelu errs by up to |x| 2^-12. That is less than the rounding for most x; below -2, where gelu is small, it is more, and next to the
// values that gelu has elsewhere, with which it is added up, nothing. For others tanh comes from an exponential.
#pragma once
#include "epilogue.cuh"

__host__ __device__ constexpr bool is_gated(int activation) { return activation == static_cast<int>(Activation::kSilu); }

template <class T>
__device__ __forceinline__ float sigmoid(float x) {
    if constexpr (sizeof(T) == 2) return rcp_approx(1.0f + exp2_approx(-1.4426950408889634f * x));
    else return 1.0f / (1.0f + expf(-x));
}

template <class T>
__device__ __forceinline__ float tanh_of(float u) {
    if constexpr (rounds_to_8_bits<T>) return tanh_approx(u);
    else return tanhf(u);
}

// act(x), of gate and up silu(gate) * up.
template <int ACTIVATION, class T>
__device__ __forceinline__ float ffn_activate(float x, float up = 1.0f) {
    constexpr auto activation = static_cast<Activation>(ACTIVATION);
    if constexpr (activation == Activation::kGeluTanh && rounds_to_8_bits<T>) {
        return 0.5f * x * (1.0f + tanh_approx(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    } else if constexpr (is_gated(ACTIVATION)) {
        return gated<ACTIVATION, T>(x, up);
    } else {
        return activate<ACTIVATION, T>(x);
    }
}

// act'(x) of the activation that is not gated, or silu's.
template <int ACTIVATION, class T>
__device__ __forceinline__ float ffn_slope(float x) {
    constexpr auto activation = static_cast<Activation>(ACTIVATION);
    if constexpr (activation == Activation::kGelu) {
        return 0.5f * (1.0f + erff(0.7071067811865476f * x)) + x * 0.3989422804014327f * exp2_approx(-0.7213475204444817f * x * x);
    } else if constexpr (activation == Activation::kGeluTanh) {
        const float tanh = tanh_of<T>(0.7978845608028654f * (x + 0.044715f * x * x * x));
        const float u_slope = 0.7978845608028654f * (1.0f + 0.134145f * x * x);
        return 0.5f * (1.0f + tanh) + 0.5f * x * (1.0f - tanh * tanh) * u_slope;
    } else {
        const float s = sigmoid<T>(x);
        return s * (1.0f + x * (1.0f - s));
    }
}
