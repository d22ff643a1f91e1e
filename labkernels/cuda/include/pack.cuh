// Floats made narrow and put side by side in a register, as mma.sync's fragments hold them: the first argument in the lowest bits.
// Rounded to nearest even, but for to_tf32. fp8 saturates: what is too large, infinities too, becomes the largest finite value.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifdef LK_EMULATOR
namespace lk {
// NaN is 0x7fff, as the instructions give it.
LK_DEVICE unsigned pair(unsigned low, unsigned high) { return low | high << 16; }
LK_DEVICE unsigned narrow_bf16(float x) { return x != x ? 0x7fffu : bits<unsigned short>(__float2bfloat16_rn(x)); }
LK_DEVICE unsigned narrow_f16(float x) { return x != x ? 0x7fffu : bits<unsigned short>(__float2half_rn(x)); }
LK_DEVICE float positive(float x) { return x <= 0 ? 0.0f : x; }
LK_DEVICE int clamp_byte(int x) { return x < -128 ? -128 : x > 127 ? 127 : x; }
}  // namespace lk
#define LK_PACK(ptx, meaning) return meaning;
#else
#define LK_PACK(ptx, meaning)                                     \
    unsigned result;                                              \
    asm(ptx " %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low)); \
    return result;
#endif

// Two bfloat16s (sm_80); _relu makes what is negative zero, and keeps NaN.
__device__ __forceinline__ unsigned pack_bf16x2(float low, float high) {
    LK_PACK("cvt.rn.bf16x2.f32", lk::pair(lk::narrow_bf16(low), lk::narrow_bf16(high)))
}
__device__ __forceinline__ unsigned pack_bf16x2_relu(float low, float high) {
    LK_PACK("cvt.rn.relu.bf16x2.f32", lk::pair(lk::narrow_bf16(lk::positive(low)), lk::narrow_bf16(lk::positive(high))))
}

// Two halves (sm_80). What is too large becomes infinite.
__device__ __forceinline__ unsigned pack_f16x2(float low, float high) {
    LK_PACK("cvt.rn.f16x2.f32", lk::pair(lk::narrow_f16(low), lk::narrow_f16(high)))
}
__device__ __forceinline__ unsigned pack_f16x2_relu(float low, float high) {
    LK_PACK("cvt.rn.relu.f16x2.f32", lk::pair(lk::narrow_f16(lk::positive(low)), lk::narrow_f16(lk::positive(high))))
}
#undef LK_PACK

// Two of the 16-bit type T: pack_pair<__nv_bfloat16>, pack_pair<__half>.
template <class T>
__device__ unsigned pack_pair(float low, float high);
template <>
__device__ __forceinline__ unsigned pack_pair<__nv_bfloat16>(float low, float high) { return pack_bf16x2(low, high); }
template <>
__device__ __forceinline__ unsigned pack_pair<__half>(float low, float high) { return pack_f16x2(low, high); }

#ifdef LK_EMULATOR
#define LK_PACK(ptx, kind)                                                                \
    return static_cast<unsigned short>(__nv_cvt_float_to_fp8(low, __NV_SATFINITE, kind) | \
                                       __nv_cvt_float_to_fp8(high, __NV_SATFINITE, kind) << 8);
#define LK_UNPACK(ptx, kind)                                                                                             \
    const auto half = [](unsigned byte) { return static_cast<unsigned>(__nv_cvt_fp8_to_halfraw(byte & 0xff, kind).x); }; \
    return lk::pair(half(pair), half(pair >> 8));
#else
#define LK_PACK(ptx, kind)                                        \
    unsigned short result;                                        \
    asm(ptx " %0, %1, %2;" : "=h"(result) : "f"(high), "f"(low)); \
    return result;
#define LK_UNPACK(ptx, kind)                        \
    unsigned result;                                \
    asm(ptx " %0, %1;" : "=r"(result) : "h"(pair)); \
    return result;
#endif

// Two fp8 numbers (sm_89), and back to two halves, which hold them exactly.
__device__ __forceinline__ unsigned short pack_e4m3x2(float low, float high) { LK_PACK("cvt.rn.satfinite.e4m3x2.f32", __NV_E4M3) }
__device__ __forceinline__ unsigned short pack_e5m2x2(float low, float high) { LK_PACK("cvt.rn.satfinite.e5m2x2.f32", __NV_E5M2) }
__device__ __forceinline__ unsigned unpack_e4m3x2(unsigned short pair) { LK_UNPACK("cvt.rn.f16x2.e4m3x2", __NV_E4M3) }
__device__ __forceinline__ unsigned unpack_e5m2x2(unsigned short pair) { LK_UNPACK("cvt.rn.f16x2.e5m2x2", __NV_E5M2) }
#undef LK_PACK
#undef LK_UNPACK

// Four fp8 numbers: a whole register of an fp8 fragment (sm_89).
__device__ __forceinline__ unsigned pack_e4m3x4(float x0, float x1, float x2, float x3) {
    return pack_e4m3x2(x0, x1) | static_cast<unsigned>(pack_e4m3x2(x2, x3)) << 16;
}
__device__ __forceinline__ unsigned pack_e5m2x4(float x0, float x1, float x2, float x3) {
    return pack_e5m2x2(x0, x1) | static_cast<unsigned>(pack_e5m2x2(x2, x3)) << 16;
}

// Four signed bytes, each clamped to -128 .. 127 (sm_72).
__device__ __forceinline__ unsigned pack_s8x4(int x0, int x1, int x2, int x3) {
    unsigned result;
#ifdef LK_EMULATOR
    result = (lk::clamp_byte(x0) & 0xff) | (lk::clamp_byte(x1) & 0xff) << 8 | (lk::clamp_byte(x2) & 0xff) << 16 |
             static_cast<unsigned>(lk::clamp_byte(x3)) << 24;
#else
    unsigned upper;
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, 0;" : "=r"(upper) : "r"(x3), "r"(x2));
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(x1), "r"(x0), "r"(upper));
#endif
    return result;
}

// A float rounded to tf32, ties away from zero (sm_80): the register that mma_m16n8k8<tf32> takes.
__device__ __forceinline__ unsigned to_tf32(float value) {
    unsigned result;
#ifdef LK_EMULATOR
    result = lk::bits<unsigned>(value);
    if ((result & 0x7f800000u) != 0x7f800000u) result = (result + 0x1000u) & 0xffffe000u;
#else
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
#endif
    return result;
}
