// Fences between what threads do themselves and what the hardware does for them (sm_90).
#pragma once

// What this thread wrote with ordinary stores may be read by asynchronous copies and by wgmma, once a barrier has told
// their thread. Every writing thread calls it, before the barrier.
__device__ __forceinline__ void fence_proxy_async() {
#ifndef LK_EMULATOR
    asm volatile("fence.proxy.async;" ::: "memory");
#else
    lk::proxy_fence();
#endif
}

// The same for shared memory alone, which is all that wgmma and a copy out of shared memory read. It waits for no store to global memory,
// and so costs little: fence_proxy_async() in a matmul's epilogue costs 7% of the kernel.
__device__ __forceinline__ void fence_proxy_async_shared() {
#ifndef LK_EMULATOR
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    lk::proxy_fence();
#endif
}

// What mbarrier_init wrote is seen by asynchronous copies and by the other blocks of the cluster. Then __syncthreads.
__device__ __forceinline__ void fence_mbarrier_init() {
#ifndef LK_EMULATOR
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
    lk::proxy_fence();
#endif
}

// Programmatic dependent launch: wait for the kernel before, or let the next one start. No meaning before sm_90 and in the emulator, where kernels
// run one after another; but its sanitizer knows who has waited (lk.sanitize with early=True).
__device__ __forceinline__ void grid_dependency_wait() {
#ifdef LK_EMULATOR
    lk::grid_dependency_wait();
#elif __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void grid_dependency_launch() {
#if !defined(LK_EMULATOR) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
