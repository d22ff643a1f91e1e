// wgmma (sm_90a): a warpgroup (4 warps, the first a multiple of 4) multiplies D (64 x N) += A (64 x K) B (K x N), N = 8, 16, ... 256.
//
//   wgmma_fence();                                      the accumulators (and A's registers) are ready
//   wgmma<__nv_bfloat16>(d, descriptor_a, descriptor_b, accumulate);    ... several of them
//   wgmma_commit();                                     they are a group
//   wgmma_wait<0>(d);                                   all groups but the last 0 are done: d may be used, shared memory reused
//
// T is __nv_bfloat16 or __half (K = 16), float (tf32, K = 8), __nv_fp8_e4m3 or __nv_fp8_e5m2 (K = 32): always 32 bytes of K.
// Or signed char (K = 32): then the accumulators are ints, exact modulo 2^32, and N is 8, 16, 24, or one of 32, 48, 64, ... 256.
// Thread t of the warpgroup holds in d[i] the element of D in row 16 (t / 32) + t % 32 / 4 + (i & 2 ? 8 : 0) and column
// 8 (i / 4) + 2 (t % 4) + (i & 1). A from registers lies as for mma.sync: four 32-bit registers a thread.
//
// A and B in shared memory are described by matrix_descriptor. K-major (K dense): with a swizzle of W bytes the tile is made of
// slabs, 8 rows of W bytes each, as tma_load leaves them where the box is W bytes wide; `stride` is the distance in bytes from
// 8 rows to the next 8, `leading` is not looked at. To go on along K inside the W bytes add (bytes >> 4) to the descriptor.
// MN-major (TRANSPOSE_A, TRANSPOSE_B, 16-bit types only; M or N dense): rows are K, W bytes of M or N wide; `stride` leads from 8 rows
// of K to the next 8, `leading` from W bytes of M or N to the next W. Without a swizzle a core matrix is 8 rows of 16
// bytes in a piece: K-major `leading` goes along K and `stride` along M or N, MN-major it is the other way around.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "fence.cuh"
#include "wgmma_registers.cuh"

using MatrixDescriptor = unsigned long long;

// `tile` lies on a multiple of 16 bytes (8 W with a swizzle of W bytes: 32, 64, 128), `leading` and `stride` are multiples of 16.
__device__ __forceinline__ MatrixDescriptor matrix_descriptor(const void* tile, int leading, int stride, int swizzle_bytes) {
    const unsigned long long address = __cvta_generic_to_shared(tile);
    const unsigned long long mode = swizzle_bytes == 128 ? 1 : swizzle_bytes == 64 ? 2 : swizzle_bytes == 32 ? 3 : 0;
    return (address & 0x3ffff) >> 4 | (leading & 0x3ffffull) >> 4 << 16 | (stride & 0x3ffffull) >> 4 << 32 | mode << 62;
}

// The registers that the threads have written or read may now be used by wgmma. Before the first one, and after every other use.
__device__ __forceinline__ void wgmma_fence() {
#ifndef LK_EMULATOR
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    lk::wgmma_fence();
#endif
}

__device__ __forceinline__ void wgmma_commit() {
#ifndef LK_EMULATOR
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    lk::wgmma_commit();
#endif
}

// Waits for all groups but the last PENDING.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
#ifndef LK_EMULATOR
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#else
    lk::wgmma_wait(PENDING);
#endif
}

// The same, and keeps the compiler from reading the accumulators `d` before.
template <int PENDING, int COUNT>
__device__ __forceinline__ void wgmma_wait(float (&d)[COUNT]) {
    wgmma_wait<PENDING>();
#ifndef LK_EMULATOR
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
#endif
}
template <int PENDING, int COUNT>
__device__ __forceinline__ void wgmma_wait(int (&d)[COUNT]) {
    wgmma_wait<PENDING>();
#ifndef LK_EMULATOR
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(d[i])::"memory");
#endif
}

template <class T> struct WgmmaType;

#ifndef LK_EMULATOR
#define LK_ISSUE(TYPES, N, SCALE, OPERANDS, ...)                                                                             \
    if constexpr (COUNT == N / 2)                                                                                            \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #SCALE ", 0; wgmma.mma_async.sync.aligned.m64n" #N TYPES " {" LK_D##N "}, " OPERANDS \
                 "; }" : LK_F##N : __VA_ARGS__ : "memory");
#define LK_SHARED_16(T, N, A, B, S, U, V, ...) \
    LK_ISSUE(T, N, S, "%" #A ", %" #B ", p, 1, 1, %" #U ", %" #V, "l"(a), "l"(b), "r"(scale), "n"(int(TransposeA)), "n"(int(TransposeB)))
#define LK_REGISTERS_16(T, N, A, B, C, D, E, S, U, ...)                                                                       \
    LK_ISSUE(T, N, S, "{%" #A ", %" #B ", %" #C ", %" #D "}, %" #E ", p, 1, 1, %" #U, "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), \
             "l"(b), "r"(scale), "n"(int(TransposeB)))
#define LK_SHARED(T, N, A, B, S, ...) LK_ISSUE(T, N, S, "%" #A ", %" #B ", p, 1, 1", "l"(a), "l"(b), "r"(scale))
#define LK_REGISTERS(T, N, A, B, C, D, E, S, ...)                                                                           \
    LK_ISSUE(T, N, S, "{%" #A ", %" #B ", %" #C ", %" #D "}, %" #E ", p, 1, 1", "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), \
             "r"(scale))
#define LK_SHARED_INTEGER(T, N, A, B, S, ...) LK_ISSUE(T, N, S, "%" #A ", %" #B ", p", "l"(a), "l"(b), "r"(scale))
#define LK_REGISTERS_INTEGER(T, N, A, B, C, D, E, S, ...)                                                                   \
    LK_ISSUE(T, N, S, "{%" #A ", %" #B ", %" #C ", %" #D "}, %" #E ", p", "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(scale))
#define LK_WGMMA_TYPE(TYPE, KIND, PTX, SHARED, REGISTERS, BYTES, SUM, EACH)                                                  \
    template <> struct WgmmaType<TYPE> {                                                                           \
        static constexpr int bytes = BYTES;                                                                        \
        template <bool TransposeA, bool TransposeB, int COUNT>                                                                     \
        static __device__ __forceinline__ void issue(SUM (&d)[COUNT], MatrixDescriptor a, MatrixDescriptor b, int scale) { \
            EACH(SHARED, PTX)                                                                                 \
        }                                                                                                          \
        template <bool TransposeB, int COUNT>                                                                              \
        static __device__ __forceinline__ void issue(SUM (&d)[COUNT], const unsigned (&a)[4], MatrixDescriptor b, int scale) { \
            EACH(REGISTERS, PTX)                                                                              \
        }                                                                                                          \
    };
#else
#define LK_WGMMA_TYPE(TYPE, KIND, PTX, SHARED, REGISTERS, BYTES, SUM, EACH)                                                  \
    template <> struct WgmmaType<TYPE> {                                                                           \
        static constexpr int bytes = BYTES;                                                                        \
        template <bool TransposeA, bool TransposeB, int COUNT>                                                                     \
        static __forceinline__ void issue(SUM (&d)[COUNT], MatrixDescriptor a, MatrixDescriptor b, int scale) {  \
            lk::wgmma(lk::Wgmma{d, nullptr, a, b, 2 * COUNT, lk::KIND, scale != 0, TransposeA, TransposeB});                       \
        }                                                                                                          \
        template <bool TransposeB, int COUNT>                                                                              \
        static __forceinline__ void issue(SUM (&d)[COUNT], const unsigned (&a)[4], MatrixDescriptor b, int scale) { \
            lk::wgmma(lk::Wgmma{d, a, 0, b, 2 * COUNT, lk::KIND, scale != 0, false, TransposeB});                          \
        }                                                                                                          \
    };
#endif
#define LK_SUM "+f"
LK_WGMMA_TYPE(__nv_bfloat16, kBfloat16, "k16.f32.bf16.bf16", LK_SHARED_16, LK_REGISTERS_16, 2, float, LK_EACH_N)
LK_WGMMA_TYPE(__half, kFloat16, "k16.f32.f16.f16", LK_SHARED_16, LK_REGISTERS_16, 2, float, LK_EACH_N)
LK_WGMMA_TYPE(float, kTf32, "k8.f32.tf32.tf32", LK_SHARED, LK_REGISTERS, 4, float, LK_EACH_N)
LK_WGMMA_TYPE(__nv_fp8_e4m3, kFloat8E4M3, "k32.f32.e4m3.e4m3", LK_SHARED, LK_REGISTERS, 1, float, LK_EACH_N)
LK_WGMMA_TYPE(__nv_fp8_e5m2, kFloat8E5M2, "k32.f32.e5m2.e5m2", LK_SHARED, LK_REGISTERS, 1, float, LK_EACH_N)
#undef LK_SUM
#define LK_SUM "+r"
LK_WGMMA_TYPE(signed char, kInt8, "k32.s32.s8.s8", LK_SHARED_INTEGER, LK_REGISTERS_INTEGER, 1, int, LK_EACH_INTEGER_N)
#undef LK_SUM
#undef LK_WGMMA_TYPE

// D = A B (+ D if `accumulate`), A and B from shared memory; N is twice the number of accumulators.
template <class T, bool TRANSPOSE_A = false, bool TRANSPOSE_B = false, int COUNT>
__device__ __forceinline__ void wgmma(float (&d)[COUNT], MatrixDescriptor a, MatrixDescriptor b, bool accumulate) {
    static_assert(COUNT % 4 == 0 && COUNT <= 128, "d has N / 2 accumulators, and N is a multiple of 8 up to 256");
    static_assert(WgmmaType<T>::bytes == 2 || !(TRANSPOSE_A || TRANSPOSE_B), "only 16-bit types can be read transposed");
    WgmmaType<T>::template issue<TRANSPOSE_A, TRANSPOSE_B>(d, a, b, accumulate);
}

// The same with A from registers, which must not be written before the group is done.
template <class T, bool TRANSPOSE_B = false, int COUNT>
__device__ __forceinline__ void wgmma(float (&d)[COUNT], const unsigned (&a)[4], MatrixDescriptor b, bool accumulate) {
    static_assert(COUNT % 4 == 0 && COUNT <= 128, "d has N / 2 accumulators, and N is a multiple of 8 up to 256");
    static_assert(WgmmaType<T>::bytes == 2 || !TRANSPOSE_B, "only 16-bit types can be read transposed");
    WgmmaType<T>::template issue<TRANSPOSE_B>(d, a, b, accumulate);
}

// Both with integers.
template <class T, int COUNT>
__device__ __forceinline__ void wgmma(int (&d)[COUNT], MatrixDescriptor a, MatrixDescriptor b, bool accumulate) {
    static_assert(COUNT == 12 || COUNT == 4 || COUNT % 8 == 0 && COUNT <= 128, "d has N / 2 accumulators, and N is 8, 24, or a multiple of 16 up to 256");
    WgmmaType<T>::template issue<false, false>(d, a, b, accumulate);
}
template <class T, int COUNT>
__device__ __forceinline__ void wgmma(int (&d)[COUNT], const unsigned (&a)[4], MatrixDescriptor b, bool accumulate) {
    static_assert(COUNT == 12 || COUNT == 4 || COUNT % 8 == 0 && COUNT <= 128, "d has N / 2 accumulators, and N is 8, 24, or a multiple of 16 up to 256");
    WgmmaType<T>::template issue<false>(d, a, b, accumulate);
}
