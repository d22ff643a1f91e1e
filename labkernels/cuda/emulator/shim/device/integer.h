// Integer intrinsics: counting and moving bits, wide and narrow products, byte-wise dot products.
#pragma once
#include "types.h"

LK_DEVICE int __popc(unsigned x) { return __builtin_popcount(x); }
LK_DEVICE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
LK_DEVICE int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
LK_DEVICE int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
LK_DEVICE int __ffs(int x) { return __builtin_ffs(x); }
LK_DEVICE int __ffsll(long long x) { return __builtin_ffsll(x); }

LK_DEVICE unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
LK_DEVICE unsigned long long __brevll(unsigned long long x) {
    return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 | __brev(static_cast<unsigned>(x >> 32));
}

// The position of the offset-th set bit of `mask`, counted from bit `base` (upwards, or downwards for a negative offset).
inline unsigned __fns(unsigned mask, unsigned base, int offset) {
    if (offset == 0) return mask >> base & 1 ? base : ~0u;
    const int step = offset > 0 ? 1 : -1;
    int left = offset * step;
    for (int bit = static_cast<int>(base); bit >= 0 && bit < 32; bit += step)
        if (mask >> bit & 1 && --left == 0) return static_cast<unsigned>(bit);
    return ~0u;
}

// Shifts of the 64-bit word high:low; _lc and _rc clamp the shift at 32, the others take it modulo 32.
LK_DEVICE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<std::uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
LK_DEVICE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<std::uint64_t>(high) << 32 | low) >> (shift & 31));
}
LK_DEVICE unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned shift) {
    return shift >= 32 ? low : __funnelshift_l(low, high, shift);
}
LK_DEVICE unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) {
    return shift >= 32 ? high : __funnelshift_r(low, high, shift);
}

// The lower three bits of each nibble of the selector pick one of the eight bytes y:x. The top bit is ignored, unlike in PTX's prmt.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const std::uint64_t source = static_cast<std::uint64_t>(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned nibble = selector >> (4 * i);
        result |= (static_cast<unsigned>(source >> (8 * (nibble & 7))) & 0xff) << (8 * i);
    }
    return result;
}

LK_DEVICE int __mulhi(int a, int b) { return static_cast<int>(static_cast<std::int64_t>(a) * b >> 32); }
LK_DEVICE unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<std::uint64_t>(a) * b >> 32); }
LK_DEVICE long long __mul64hi(long long a, long long b) { return static_cast<long long>(static_cast<__int128>(a) * b >> 64); }
LK_DEVICE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
LK_DEVICE int __mul24(int a, int b) {
    const auto low24 = [](int x) { return static_cast<std::int64_t>(static_cast<int>(static_cast<unsigned>(x) << 8) >> 8); };
    return static_cast<int>(low24(a) * low24(b));
}
LK_DEVICE unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffffu) * (b & 0xffffffu); }

LK_DEVICE unsigned __sad(int a, int b, unsigned c) {
    return c + (a > b ? static_cast<unsigned>(a) - static_cast<unsigned>(b) : static_cast<unsigned>(b) - static_cast<unsigned>(a));
}
LK_DEVICE unsigned __usad(unsigned a, unsigned b, unsigned c) { return c + (a > b ? a - b : b - a); }

// Averages without overflow; the __r forms round up.
LK_DEVICE int __hadd(int a, int b) { return static_cast<int>((static_cast<std::int64_t>(a) + b) >> 1); }
LK_DEVICE int __rhadd(int a, int b) { return static_cast<int>((static_cast<std::int64_t>(a) + b + 1) >> 1); }
LK_DEVICE unsigned __uhadd(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<std::uint64_t>(a) + b) >> 1); }
LK_DEVICE unsigned __urhadd(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<std::uint64_t>(a) + b + 1) >> 1); }

namespace lk {

template <class Part, class Sum, class Word> inline Sum dot_bytes(Word a, Word b, Sum c) {
    for (int i = 0; i < 4; ++i) c += static_cast<Sum>(static_cast<Part>(a >> (8 * i))) * static_cast<Sum>(static_cast<Part>(b >> (8 * i)));
    return c;
}

}  // namespace lk

// Four 8-bit products added to c.
LK_DEVICE int __dp4a(int a, int b, int c) {
    return static_cast<int>(lk::dot_bytes<std::int8_t, unsigned>(static_cast<unsigned>(a), static_cast<unsigned>(b), static_cast<unsigned>(c)));
}
LK_DEVICE unsigned __dp4a(unsigned a, unsigned b, unsigned c) { return lk::dot_bytes<std::uint8_t, unsigned>(a, b, c); }
LK_DEVICE int __dp4a(char4 a, char4 b, int c) { return c + a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
LK_DEVICE unsigned __dp4a(uchar4 a, uchar4 b, unsigned c) {
    return c + static_cast<unsigned>(a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w);
}

// Two 16-bit values of a times the low (or high) two bytes of b, added to c.
LK_DEVICE int __dp2a_lo(int a, int b, int c) {
    return c + static_cast<std::int16_t>(a) * static_cast<std::int8_t>(b) + (a >> 16) * static_cast<std::int8_t>(b >> 8);
}
LK_DEVICE int __dp2a_hi(int a, int b, int c) { return __dp2a_lo(a, b >> 16, c); }
LK_DEVICE unsigned __dp2a_lo(unsigned a, unsigned b, unsigned c) { return c + (a & 0xffff) * (b & 0xff) + (a >> 16) * (b >> 8 & 0xff); }
LK_DEVICE unsigned __dp2a_hi(unsigned a, unsigned b, unsigned c) { return __dp2a_lo(a, b >> 16, c); }
