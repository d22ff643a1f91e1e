// Copies of what is read once and never again, such as a weight that meets one row of activations.
#pragma once
#include "shared_address.cuh"

// As cp_async_l2 (cp_async.cuh), 16 bytes into shared memory past L1, and L2 fetches the 128 bytes that they are of.
__device__ __forceinline__ void cp_async_stream(void* shared, const void* global) {
#ifdef LK_EMULATOR
    lk::copy_async<16>(shared, global, 16);
#else
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)) : "memory");
#endif
}
