// Copies from global to shared memory that go on while the thread computes (PTX cp.async, sm_80).
//
//   cp_async<16>(&tile[0], &x[0]);      each thread starts copies ...
//   cp_async_commit();                  ... closes a group of them ...
//   cp_async_wait<1>();                 ... and waits until all of its groups but the last one have landed.
//   __syncthreads();                    Only then may the other threads read them.
//
// Until the wait, what the destination holds is undefined. The emulator makes the worst of it: the destination is filled with
// bytes 0xff (NaN, -1) at the start of a copy, and gets its data in the wait, as late as is allowed.
#pragma once
#include "shared_address.cuh"
#ifdef LK_EMULATOR
#include "device/async_copy.h"
#endif

// Start to copy the first `valid` of `Bytes` bytes (4, 8 or 16) and to fill the rest with zeros; both addresses are multiples of
// `Bytes`. With valid = 0 the source is not read. Through L1 (.ca).
template <int Bytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, int valid = Bytes) {
    static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
#ifdef LK_EMULATOR
    lk::copy_async<Bytes>(shared, global, valid);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)),
                 "n"(Bytes), "r"(valid) : "memory");
#endif
}

// The same of 16 bytes, past L1 (.cg): for what no other block of the same SM reads.
__device__ __forceinline__ void cp_async_l2(void* shared, const void* global, int valid = 16) {
#ifdef LK_EMULATOR
    lk::copy_async<16>(shared, global, valid);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)),
                 "r"(valid) : "memory");
#endif
}

// The same of all 16 bytes where `inside` holds, and of zeros where it does not. `valid` costs the compiler five instructions of
// addresses, a predicate none.
__device__ __forceinline__ void cp_async_l2_if(bool inside, void* shared, const void* global) {
#ifdef LK_EMULATOR
    lk::copy_async<16>(shared, global, inside ? 16 : 0);
#else
    asm volatile("{\n.reg .pred outside;\nsetp.eq.u32 outside, %2, 0;\ncp.async.cg.shared.global [%0], [%1], 16, outside;\n}"
                 ::"r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(static_cast<unsigned>(inside)) : "memory");
#endif
}

// Close a group: the thread's copies since the last one. A group may be empty, which keeps the count right in the last rounds.
__device__ __forceinline__ void cp_async_commit() {
#ifdef LK_EMULATOR
    lk::commit_async_copies();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most the thread's N latest groups are still on their way.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
#ifdef LK_EMULATOR
    lk::wait_async_copies(N);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Wait for all of the thread's copies, in groups or not.
__device__ __forceinline__ void cp_async_wait_all() {
#ifdef LK_EMULATOR
    lk::wait_all_async_copies();
#else
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
