// What is left: printf, assert and traps, clocks, and questions about addresses.
#pragma once
#include "types.h"

// printf in device code, also as ::printf and std::printf.
template <class... Arguments> LK_DEVICE int lk_device_printf(const char* format, Arguments... arguments) {
    return lk::device_printf(format, arguments...);
}
namespace std { using ::lk_device_printf; }
#define printf lk_device_printf

#include <assert.h>     // overlay/assert.h
namespace lk {

[[noreturn]] __attribute__((noinline, cold)) inline void assertion_failed(const char* expression, const char* file, int line) {
    char text[512];
    std::snprintf(text, sizeof text, "%s:%d: assertion `%s` failed", file, line, expression);
    fail(text);
}

}  // namespace lk

[[noreturn]] LK_DEVICE void __trap() { lk::fail("__trap() was called"); }
LK_DEVICE void __brkpt() { lk::fail("__brkpt() was called: there is no debugger"); }

// A promise to the compiler on a GPU. Here it is not taken up.
#define __builtin_assume(condition) ((void)0)
#define __assume(condition) ((void)0)

LK_DEVICE long long clock64() { return static_cast<long long>(lk::clock()); }
LK_DEVICE clock_t lk_device_clock() { return static_cast<clock_t>(lk::clock()); }
namespace lk { using ::lk_device_clock; }
namespace std { using ::lk_device_clock; }
#define clock() lk_device_clock()

// Addresses. Shared memory has an address space of its own, in which PTX counts from 0.
LK_DEVICE size_t __cvta_generic_to_shared(const void* address) { return lk::shared_offset(address); }
LK_DEVICE size_t __cvta_generic_to_global(const void* address) { return reinterpret_cast<size_t>(address); }
LK_DEVICE void* __cvta_global_to_generic(size_t address) { return reinterpret_cast<void*>(address); }
LK_DEVICE unsigned __isShared(const void* address) { return lk::shared_offset(address) != ~0u; }
LK_DEVICE unsigned __isGlobal(const void* address) { return !__isShared(address); }
