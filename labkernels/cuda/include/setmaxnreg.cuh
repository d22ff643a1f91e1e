// Registers moved between warpgroups (sm_90a): producers give back what consumers take. All warps of a warpgroup must call it, and
// the kernel needs __launch_bounds__(threads, 1). N is a multiple of 8 from 24 to 256. No meaning in the emulator.
#pragma once

template <int N>
__device__ __forceinline__ void register_allocate() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "a multiple of 8 from 24 to 256");
#ifndef LK_EMULATOR
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

template <int N>
__device__ __forceinline__ void register_deallocate() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "a multiple of 8 from 24 to 256");
#ifndef LK_EMULATOR
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
