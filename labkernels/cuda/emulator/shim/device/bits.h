// The same bits seen as another type: __float_as_int and its family.
#pragma once
#include "types.h"

namespace lk {

template <class To, class From> LK_DEVICE To bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "both types must have the same size");
    To result;
    __builtin_memcpy(static_cast<void*>(&result), &value, sizeof result);
    return result;
}

}  // namespace lk

LK_DEVICE int __float_as_int(float value) { return lk::bits<int>(value); }
LK_DEVICE unsigned __float_as_uint(float value) { return lk::bits<unsigned>(value); }
LK_DEVICE float __int_as_float(int value) { return lk::bits<float>(value); }
LK_DEVICE float __uint_as_float(unsigned value) { return lk::bits<float>(value); }
LK_DEVICE long long __double_as_longlong(double value) { return lk::bits<long long>(value); }
LK_DEVICE double __longlong_as_double(long long value) { return lk::bits<double>(value); }
LK_DEVICE int __double2hiint(double value) { return static_cast<int>(lk::bits<std::uint64_t>(value) >> 32); }
LK_DEVICE int __double2loint(double value) { return static_cast<int>(lk::bits<std::uint64_t>(value)); }
LK_DEVICE double __hiloint2double(int high, int low) {
    return lk::bits<double>(static_cast<std::uint64_t>(static_cast<unsigned>(high)) << 32 | static_cast<unsigned>(low));
}
