// mbarriers (sm_90): barriers in shared memory that also count the bytes of asynchronous copies.
//
// A phase completes when `count` arrivals have come and all expected bytes are there; then the next one begins. Phases are told
// apart by their parity: the first has 0, the second 1, the third 0. Waiting for a parity means waiting until the phase that has
// it is over; on a fresh mbarrier mbarrier_wait(b, 1) returns at once, which is how a producer finds its buffers empty.
#pragma once
#include "fence.cuh"
#include "shared_address.cuh"

using Mbarrier = unsigned long long;  // 8 bytes of shared memory, 8-byte aligned: __shared__ Mbarrier full[STAGES];

// One thread initialises; then fence_mbarrier_init() and __syncthreads(), before anybody else touches it.
__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, int count) {
#ifndef LK_EMULATOR
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
#else
    lk::mbarrier_init(reinterpret_cast<std::uint64_t*>(barrier), count);
#endif
}

__device__ __forceinline__ void mbarrier_arrive(Mbarrier* barrier) {
#ifndef LK_EMULATOR
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(shared_address(barrier)) : "memory");
#else
    lk::mbarrier_arrive(reinterpret_cast<std::uint64_t*>(barrier), 1, 0);
#endif
}

// This phase waits for `bytes` more from asynchronous copies.
__device__ __forceinline__ void mbarrier_expect_tx(Mbarrier* barrier, int bytes) {
#ifndef LK_EMULATOR
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
#else
    lk::mbarrier_expect(reinterpret_cast<std::uint64_t*>(barrier), bytes);
#endif
}

// Both at once: the producer's one arrival, before it issues its copies.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(Mbarrier* barrier, int bytes) {
#ifndef LK_EMULATOR
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
#else
    lk::mbarrier_arrive(reinterpret_cast<std::uint64_t*>(barrier), 1, bytes);
#endif
}

// Whether the phase with this parity is over; it may wait a little before it says no.
__device__ __forceinline__ bool mbarrier_try_wait(Mbarrier* barrier, int parity) {
#ifndef LK_EMULATOR
    unsigned done;
    asm volatile(
        "{ .reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return done;
#else
    return lk::mbarrier_test(reinterpret_cast<std::uint64_t*>(barrier), parity, false);
#endif
}

// Waits until the phase with this parity is over.
__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, int parity) {
#ifndef LK_EMULATOR
    while (!mbarrier_try_wait(barrier, parity)) {
    }
#else
    lk::mbarrier_wait(reinterpret_cast<std::uint64_t*>(barrier), parity, false);
#endif
}

// True in one lane of a warp whose 32 lanes all call it: the one that issues copies.
__device__ __forceinline__ bool elect_one() {
#ifndef LK_EMULATOR
    unsigned elected;
    asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(elected));
    return elected;
#else
    __syncwarp();
    return lk::lane() == 0;
#endif
}
