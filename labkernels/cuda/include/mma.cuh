// Tensor cores, one warp at a time: D = A * B + C on fragments in registers (PTX mma.sync). A is 16 x k by rows, B is k x 8 by
// columns, C and D are 16 x 8; k fills two registers of four lanes' width. All 32 lanes call; D may be C.
//
// Which lane holds what, with n = 4 / sizeof(element) elements a register (n = 1: k = 8; 2: 16; 4: 32), as everywhere in PTX:
// lane 4 * g + t (g = 0..7, t = 0..3) holds
//
//   A (16 x k)     columns n*t .. n*t+n-1     4*n + n*t .. 4*n + n*t+n-1         B (k x 8)               column g
//   row g                   a[0]                        a[2]                     rows n*t .. n*t+n-1         b[0]
//   row g + 8               a[1]                        a[3]                     4*n + the same rows         b[1]
//
//   C, D (16 x 8)  column 2*t      2*t+1                                         C, D of halves: two elements a register
//   row g              c[0]         c[1]                                         row g       c[0] = columns 2*t, 2*t+1
//   row g + 8          c[2]         c[3]                                         row g + 8   c[1] = columns 2*t, 2*t+1
//
// (The lane's a[0] of a bfloat16 A is thus A[g][2*t] in the low half and A[g][2*t+1] in the high one: what ldmatrix gives.)
//
// Exactness: integers are exact modulo 2^32. Products of the floating types are exact; the emulator adds them to C in float32 with
// k ascending, rounding each sum to nearest. A GPU adds several at once and cuts off instead of rounding, in an order that is not
// documented: the last bits differ, and fp8 may keep fewer bits still. Where all sums are exact (small integers), both are equal.
#pragma once
#include "elements.cuh"

#ifdef LK_EMULATOR
namespace lk {

template <class Sum> struct MmaLane {
    unsigned a[4], b[2];
    Sum sum[4];
};

LK_UNWATCHED inline void require_warp(unsigned mask, const char* what) {
    if (mask == 0xffffffffu) return;
    char text[160];
    std::snprintf(text, sizeof text, "%s: all 32 lanes must take part, and some have left the kernel or do not exist", what);
    fail(text);
}

template <class A, class B, class Sum> LK_UNWATCHED void run_mma(unsigned mask, void** lanes) {
    constexpr int n = 4 / sizeof(A), k = 8 * n;
    require_warp(mask, "mma.sync");
    Sum a[16][k], b[k][8], sum[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const auto& own = *static_cast<MmaLane<Sum>*>(lanes[lane]);
        const int group = lane / 4, first = lane % 4 * n;
        for (int r = 0; r < 4; ++r)
            for (int e = 0; e < n; ++e) a[group + r % 2 * 8][r / 2 * 4 * n + first + e] = widen<A>(own.a[r], e);
        for (int r = 0; r < 2; ++r)
            for (int e = 0; e < n; ++e) b[r * 4 * n + first + e][group] = widen<B>(own.b[r], e);
        for (int i = 0; i < 4; ++i) sum[group + i / 2 * 8][lane % 4 * 2 + i % 2] = own.sum[i];
    }
    for (int row = 0; row < 16; ++row)
        for (int i = 0; i < k; ++i)
            for (int column = 0; column < 8; ++column) sum[row][column] += a[row][i] * b[i][column];
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i) static_cast<MmaLane<Sum>*>(lanes[lane])->sum[i] = sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

template <class A, class B, class Sum>
LK_DEVICE void mma(Sum (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const Sum (&c)[4]) {
    MmaLane<Sum> own{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
    collective(0xffffffffu, &own, run_mma<A, B, Sum>, "mma.sync");
    for (int i = 0; i < 4; ++i) d[i] = own.sum[i];
}

}  // namespace lk
#define LK_MMA(A, B, ptx, constraint) lk::mma<A, B>(d, a, b, c);
#else
#define LK_MMA(A, B, ptx, constraint)                                                                                    \
    asm volatile("mma.sync.aligned." ptx " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"          \
                 : "=" constraint(d[0]), "=" constraint(d[1]), "=" constraint(d[2]), "=" constraint(d[3])                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), constraint(c[0]), constraint(c[1]), \
                   constraint(c[2]), constraint(c[3]));
#endif

// One function of this form for each element type: mma_m16n8k16<__nv_bfloat16>(d, a, b, c).
#define LK_MMA_FUNCTION(name, A, B, Sum, ptx, constraint)                                                                    \
    template <>                                                                                                              \
    __device__ __forceinline__ void name<A, B>(Sum(&d)[4], const unsigned(&a)[4], const unsigned(&b)[2], const Sum(&c)[4]) { \
        LK_MMA(A, B, ptx, constraint)                                                                                        \
    }

// k = 8: tf32 (sm_80). Round to it with to_tf32 of pack.cuh; unrounded floats are cut off.
template <class A, class B = A>
__device__ void mma_m16n8k8(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4]) = delete;
LK_MMA_FUNCTION(mma_m16n8k8, tf32, tf32, float, "m16n8k8.row.col.f32.tf32.tf32.f32", "f")

// k = 16: bfloat16 and half, summed in float32 (sm_80).
template <class A, class B = A>
__device__ void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4]) = delete;
LK_MMA_FUNCTION(mma_m16n8k16, __nv_bfloat16, __nv_bfloat16, float, "m16n8k16.row.col.f32.bf16.bf16.f32", "f")
LK_MMA_FUNCTION(mma_m16n8k16, __half, __half, float, "m16n8k16.row.col.f32.f16.f16.f32", "f")

// k = 16: halves, summed in half (sm_80). The emulator sums in float32 and rounds once, at the end.
__device__ __forceinline__ void mma_m16n8k16_f16(unsigned (&d)[2], const unsigned (&a)[4], const unsigned (&b)[2], const unsigned (&c)[2]) {
#ifdef LK_EMULATOR
    const float wide[4] = {lk::widen<__half>(c[0], 0), lk::widen<__half>(c[0], 1), lk::widen<__half>(c[1], 0), lk::widen<__half>(c[1], 1)};
    float sum[4];
    lk::mma<__half, __half>(sum, a, b, wide);
    d[0] = lk::bits<unsigned>(__floats2half2_rn(sum[0], sum[1]));
    d[1] = lk::bits<unsigned>(__floats2half2_rn(sum[2], sum[3]));
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%8, %9};"
                 : "=r"(d[0]), "=r"(d[1])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]));
#endif
}

// k = 32: bytes with and without sign, summed in int32, which wraps (sm_80).
template <class A, class B = A>
__device__ void mma_m16n8k32(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const int (&c)[4]) = delete;
LK_MMA_FUNCTION(mma_m16n8k32, signed char, signed char, int, "m16n8k32.row.col.s32.s8.s8.s32", "r")
LK_MMA_FUNCTION(mma_m16n8k32, unsigned char, unsigned char, int, "m16n8k32.row.col.s32.u8.u8.s32", "r")
LK_MMA_FUNCTION(mma_m16n8k32, signed char, unsigned char, int, "m16n8k32.row.col.s32.s8.u8.s32", "r")
LK_MMA_FUNCTION(mma_m16n8k32, unsigned char, signed char, int, "m16n8k32.row.col.s32.u8.s8.s32", "r")

// k = 32: fp8, both kinds, also mixed, summed in float32 (sm_89).
template <class A, class B = A>
__device__ void mma_m16n8k32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4]) = delete;
LK_MMA_FUNCTION(mma_m16n8k32, __nv_fp8_e4m3, __nv_fp8_e4m3, float, "m16n8k32.row.col.f32.e4m3.e4m3.f32", "f")
LK_MMA_FUNCTION(mma_m16n8k32, __nv_fp8_e5m2, __nv_fp8_e5m2, float, "m16n8k32.row.col.f32.e5m2.e5m2.f32", "f")
LK_MMA_FUNCTION(mma_m16n8k32, __nv_fp8_e4m3, __nv_fp8_e5m2, float, "m16n8k32.row.col.f32.e4m3.e5m2.f32", "f")
LK_MMA_FUNCTION(mma_m16n8k32, __nv_fp8_e5m2, __nv_fp8_e4m3, float, "m16n8k32.row.col.f32.e5m2.e4m3.f32", "f")
#undef LK_MMA_FUNCTION
#undef LK_MMA
