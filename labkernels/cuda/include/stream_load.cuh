// Loads of what is read once and never again, such as a weight that meets one row of activations.
#pragma once

// 16 bytes that nobody writes while the kernel runs: not kept in L1, and L2 fetches the 128 bytes that they are of.
__device__ __forceinline__ uint4 load_stream(const uint4* source) {
#ifndef LK_EMULATOR
    uint4 found;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w)
                 : "l"(source));
    return found;
#else
    return *source;
#endif
}
