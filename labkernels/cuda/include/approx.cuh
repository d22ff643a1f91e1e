// Functions that a GPU's special function unit approximates: one instruction each, a quarter of a warp a cycle.
//
//   function        instruction                       error on a GPU (PTX ISA)
//   tanh_approx     tanh.approx.f32                   relative 2^-11
//                   .f16x2 (sm_75), .bf16x2 (sm_90)   absolute 2^-10.987, 2^-8
//   exp2_approx     ex2.approx.ftz.f32                2 units in the last place
//                   .f16x2 (sm_75), .ftz.bf16x2 (sm_90)   relative 2^-9.9, 2^-7
//   log2_approx     lg2.approx.ftz.f32                absolute 2^-22 for x in (0.5, 2), else relative 2^-22
//   rcp_approx      rcp.approx.ftz.f32                1 unit in the last place
//   rsqrt_approx    rsqrt.approx.ftz.f32              relative 2^-22.9
//   sqrt_approx     sqrt.approx.ftz.f32               relative 2^-23
//   sin_approx      sin.approx.ftz.f32                absolute 2^-20.5 for |x| <= pi, then growing
//   cos_approx      cos.approx.ftz.f32                the same
//
// The emulator gives the exact value rounded to nearest. As with .ftz, subnormal floats count as zero, going in and coming out.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifdef LK_EMULATOR
namespace lk {
LK_DEVICE float flush(double value) {
    const float rounded = static_cast<float>(value);
    return rounded < 0x1p-126f && rounded > -0x1p-126f ? copysignf(0.0f, rounded) : rounded;
}
LK_DEVICE __nv_bfloat162 exp2_flushed(__nv_bfloat162 x) {
    const auto one = [](__nv_bfloat16 x) { return __double2bfloat16(flush(std::exp2(static_cast<double>(flush(__bfloat162float(x)))))); };
    return __nv_bfloat162(one(x.x), one(x.y));
}
}  // namespace lk
#define LK_APPROX(name, ptx, function)                   \
    __device__ __forceinline__ float name(float value) { \
        const double x = lk::flush(value);               \
        return lk::flush(function);                      \
    }
#define LK_APPROX_PAIR(name, Pair, ptx, function) \
    __device__ __forceinline__ Pair name(Pair value) { return function(value); }
#else
#define LK_APPROX(name, ptx, function)                   \
    __device__ __forceinline__ float name(float value) { \
        float result;                                    \
        asm(ptx " %0, %1;" : "=f"(result) : "f"(value)); \
        return result;                                   \
    }
#define LK_APPROX_PAIR(name, Pair, ptx, function)                                                                  \
    __device__ __forceinline__ Pair name(Pair value) {                                                             \
        Pair result;                                                                                               \
        asm(ptx " %0, %1;" : "=r"(reinterpret_cast<unsigned&>(result)) : "r"(reinterpret_cast<unsigned&>(value))); \
        return result;                                                                                             \
    }
#endif

LK_APPROX(exp2_approx, "ex2.approx.ftz.f32", std::exp2(x))
LK_APPROX(log2_approx, "lg2.approx.ftz.f32", std::log2(x))
LK_APPROX(rcp_approx, "rcp.approx.ftz.f32", 1 / x)
LK_APPROX(rsqrt_approx, "rsqrt.approx.ftz.f32", 1 / std::sqrt(x))
LK_APPROX(sqrt_approx, "sqrt.approx.ftz.f32", std::sqrt(x))
LK_APPROX(sin_approx, "sin.approx.ftz.f32", std::sin(x))
LK_APPROX(cos_approx, "cos.approx.ftz.f32", std::cos(x))

// tanh has no .ftz: subnormal floats stay what they are.
__device__ __forceinline__ float tanh_approx(float value) {
#ifdef LK_EMULATOR
    return static_cast<float>(std::tanh(static_cast<double>(value)));
#else
    float result;
    asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
#endif
}

LK_APPROX_PAIR(tanh_approx, __half2, "tanh.approx.f16x2", h2tanh)
LK_APPROX_PAIR(exp2_approx, __half2, "ex2.approx.f16x2", h2exp2)
LK_APPROX_PAIR(tanh_approx, __nv_bfloat162, "tanh.approx.bf16x2", h2tanh)
LK_APPROX_PAIR(exp2_approx, __nv_bfloat162, "ex2.approx.ftz.bf16x2", lk::exp2_flushed)
#undef LK_APPROX
#undef LK_APPROX_PAIR
