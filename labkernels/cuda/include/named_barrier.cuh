// Named barriers: __syncthreads for some of a block's warps. A block has 16; number 0 is that of __syncthreads, 1 to 15 are free.
// `threads` counts all that take part, those who wait and those who only arrive; it is a multiple of 32.
#pragma once

// Waits until `threads` threads have come to barrier `id`.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
#ifndef LK_EMULATOR
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    lk::named_barrier(id, threads, true);
#endif
}

// Comes to barrier `id` and goes on: what the thread wrote before is seen by those who wait there.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
#ifndef LK_EMULATOR
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    lk::named_barrier(id, threads, false);
#endif
}
