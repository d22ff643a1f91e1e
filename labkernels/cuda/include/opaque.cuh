// The value itself, about which the compiler knows nothing: what depends on it is not worked out before a loop and then kept in registers.
// For a kernel whose registers are all taken, working out an address again is cheaper than spilling it.
#pragma once

__device__ __forceinline__ int opaque(int value) {
#ifndef LK_EMULATOR
    asm volatile("" : "+r"(value));
#endif
    return value;
}
