// The element types that tensor cores multiply, as template arguments: __half, __nv_bfloat16, tf32, __nv_fp8_e4m3, __nv_fp8_e5m2,
// signed char and unsigned char. Registers of 32 bits hold 4 / sizeof(element) of them, the first in the lowest bits.
#pragma once

struct __half;
struct __nv_bfloat16;
struct __nv_fp8_e4m3;
struct __nv_fp8_e5m2;
struct tf32 {  // a float of which the sign, 8 bits of exponent and 10 bits of fraction count
    unsigned bits;
};

#ifdef LK_EMULATOR
// What works for a whole warp reads the registers of other lanes: no access of the running lane's, so the sanitizer must not see it.
#define LK_UNWATCHED __attribute__((no_sanitize("thread")))

namespace lk {

template <class T> struct Wide { using type = float; };      // in which products of two are exact
template <> struct Wide<signed char> { using type = int; };
template <> struct Wide<unsigned char> { using type = int; };

LK_UNWATCHED inline float widen_fp8(unsigned value, __nv_fp8_interpretation_t kind) {
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(static_cast<std::uint8_t>(value), kind)));
}

// Element `part` of a register.
template <class T> LK_UNWATCHED inline typename Wide<T>::type widen(unsigned word, int part) {
    const unsigned value = word >> (8 * sizeof(T) * part % 32) & (~0u >> (32 - 8 * sizeof(T)));
    if constexpr (std::is_same<T, tf32>::value) return bits<float>(value & 0xffffe000u);        // the rest is not looked at
    else if constexpr (std::is_same<T, __nv_bfloat16>::value) return bits<float>(value << 16);
    else if constexpr (std::is_same<T, __half>::value) return __half2float(bits<__half>(static_cast<std::uint16_t>(value)));
    else if constexpr (std::is_same<T, __nv_fp8_e4m3>::value) return widen_fp8(value, __NV_E4M3);
    else if constexpr (std::is_same<T, __nv_fp8_e5m2>::value) return widen_fp8(value, __NV_E5M2);
    else return static_cast<T>(value);
}

}  // namespace lk
#endif
