// What a matmul does with a sum before it writes it: activation(sum + bias) + residual, in float32 and rounded once, at the end.
//
//   bias       one element a column, or null            residual   (rows, columns), rows residual_stride elements apart, or null
//
//   activation  value                                    NaN and infinities go where PyTorch sends them:
//   kRelu       max(x, 0)                                NaN stays NaN
//   kGelu       x/2 * (1 + erf(x / sqrt 2))              -inf is NaN (-inf * 0), inf stays inf
//   kGeluTanh   x/2 * (1 + tanh u) = x / (1 + e^-2u),    the same
//               u = sqrt(2/pi) (x + 0.044715 x^3)
//   kSilu       x / (1 + e^-x)                           the same
//
// Kernels take the activation as an int, so that Python can write `matmul<float, 2>`. T is the element type of the result: where it
// has 16 bits, e^x and the division are approximated, to a relative 2^-21. (tanh.approx would be one instruction instead of two, but
// 1 + tanh is then wrong by 2^-11: for x = -3 that is a fifth of gelu's value.)
#pragma once
#include "approx.cuh"
#include "vector.cuh"

enum class Activation : int { kNone, kRelu, kGelu, kGeluTanh, kSilu };

// What comes after the sum, where it is handed on as one thing.
template <class T>
struct Epilogue {
    const T* bias;
    const T* residual;
    long long residual_stride;
};

// x / (1 + e^-y). e^-y may be infinite: x / inf is 0, and NaN for an infinite x.
template <class T>
__device__ __forceinline__ float times_sigmoid(float x, float y) {
    if constexpr (sizeof(T) == 2) return x * rcp_approx(1.0f + exp2_approx(-1.4426950408889634f * y));
    else return x / (1.0f + expf(-y));
}

template <int ACTIVATION, class T = float>
__device__ __forceinline__ float activate(float x) {
    constexpr auto activation = static_cast<Activation>(ACTIVATION);
    static_assert(ACTIVATION >= 0 && ACTIVATION <= 4, "Activation has five values");
    if constexpr (activation == Activation::kRelu) return x <= 0.0f ? 0.0f : x;
    else if constexpr (activation == Activation::kGelu) return 0.5f * x * (1.0f + erff(0.7071067811865476f * x));
    else if constexpr (activation == Activation::kGeluTanh) return times_sigmoid<T>(x, 1.5957691216057308f * (x + 0.044715f * x * x * x));
    else if constexpr (activation == Activation::kSilu) return times_sigmoid<T>(x, x);
    else return x;
}

// Is what tanh.approx errs by (2^-11 of itself) little beside the rounding to T?
template <class T>
inline constexpr bool rounds_to_8_bits = false;
template <>
inline constexpr bool rounds_to_8_bits<__nv_bfloat16> = true;

// activation(gate) * up, of a gated network. For a bfloat16 silu is x/2 + x/2 tanh(x/2), with one approximation instead of two: the matmul that fuses
// it waits for them. It errs by up to |x| 2^-12: little beside the rounding where x > 0, as much at x = -3, where silu is small.
template <int ACTIVATION, class T = float>
__device__ __forceinline__ float gated(float gate, float up) {
    if constexpr (static_cast<Activation>(ACTIVATION) == Activation::kSilu && rounds_to_8_bits<T>) {
        const float half = 0.5f * gate;
        return fmaf(half, tanh_approx(half), half) * up;
    } else {
        return activate<ACTIVATION, T>(gate) * up;
    }
}

// The element of the result in (row, col), for the caller to round to T.
template <int ACTIVATION, class T>
__device__ __forceinline__ float finish(float sum, const T* bias, const T* residual, long long residual_stride, int row, int col) {
    if (bias != nullptr) sum += to_float(bias[col]);
    sum = activate<ACTIVATION, T>(sum);
    if (residual != nullptr) sum += to_float(residual[row * residual_stride + col]);
    return sum;
}

// The same of N neighbouring columns from `col` on, in place. Bias and residual are read N elements at a time: bias + col and
// residual + row * residual_stride + col must lie on multiples of N elements.
template <int ACTIVATION, int N, class T>
__device__ __forceinline__ void finish(float (&sums)[N], const T* bias, const T* residual, long long residual_stride, int row, int col) {
    float added[N];
    if (bias != nullptr) {
        load_vector(bias + col, added);
#pragma unroll
        for (int i = 0; i < N; ++i) sums[i] += added[i];
    }
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i] = activate<ACTIVATION, T>(sums[i]);
    if (residual != nullptr) {
        load_vector(residual + row * residual_stride + col, added);
#pragma unroll
        for (int i = 0; i < N; ++i) sums[i] += added[i];
    }
}
