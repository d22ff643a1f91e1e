// Bit tricks that are one instruction: any function of three words, any choice of four bytes, four byte products at once.
#pragma once

// lop3: any bitwise function of three words. Its table is the function itself applied to three constants, as in
//   lop3<(LOP3_A & LOP3_B) | LOP3_C>(x, mask, magic)
constexpr unsigned LOP3_A = 0xf0, LOP3_B = 0xcc, LOP3_C = 0xaa;

template <unsigned Table>
__device__ __forceinline__ unsigned lop3(unsigned a, unsigned b, unsigned c) {
    static_assert(Table < 256, "lop3's table has 8 bits; write ~(...) & 0xff for a negated function");
    unsigned result = 0;
#ifdef LK_EMULATOR
    for (unsigned row = 0; row < 8; ++row)
        if (Table >> row & 1) result |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
#else
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(result) : "r"(a), "r"(b), "r"(c), "n"(Table));
#endif
    return result;
}

// prmt: byte i of the result is one of the eight bytes high:low (0 is low's lowest), named by the lower three bits of nibble i of
// the selector. The nibble's top bit takes that byte's sign instead, eight times: 0x00 or 0xff. (__byte_perm ignores that bit.)
__device__ __forceinline__ unsigned prmt(unsigned low, unsigned high, unsigned selector) {
    unsigned result = 0;
#ifdef LK_EMULATOR
    const unsigned long long bytes = static_cast<unsigned long long>(high) << 32 | low;
    for (int i = 0; i < 4; ++i) {
        const unsigned nibble = selector >> 4 * i & 0xf, byte = static_cast<unsigned>(bytes >> 8 * (nibble & 7)) & 0xff;
        result |= (nibble < 8 ? byte : byte < 0x80 ? 0x00u : 0xffu) << 8 * i;
    }
#else
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
#endif
    return result;
}

#ifdef LK_EMULATOR
namespace lk {
template <class A, class B> LK_DEVICE int add_byte_products(unsigned a, unsigned b, int c) {
    for (int i = 0; i < 32; i += 8) c += static_cast<A>(a >> i) * static_cast<B>(b >> i);
    return c;
}
}  // namespace lk
#define LK_DP4A(A, B, ptx, Result) return static_cast<Result>(lk::add_byte_products<A, B>(a, b, static_cast<int>(c)));
#else
#define LK_DP4A(A, B, ptx, Result)                                              \
    Result result;                                                              \
    asm("dp4a" ptx " %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c)); \
    return result;
#endif

// dp4a: c + a0*b0 + a1*b1 + a2*b2 + a3*b3 of the words' bytes, modulo 2^32. The name says which word's bytes have a sign.
__device__ __forceinline__ int dp4a_s8(unsigned a, unsigned b, int c) { LK_DP4A(signed char, signed char, ".s32.s32", int) }
__device__ __forceinline__ unsigned dp4a_u8(unsigned a, unsigned b, unsigned c) {
    LK_DP4A(unsigned char, unsigned char, ".u32.u32", unsigned)
}
__device__ __forceinline__ int dp4a_s8_u8(unsigned a, unsigned b, int c) { LK_DP4A(signed char, unsigned char, ".s32.u32", int) }
__device__ __forceinline__ int dp4a_u8_s8(unsigned a, unsigned b, int c) { LK_DP4A(unsigned char, signed char, ".u32.s32", int) }
#undef LK_DP4A
