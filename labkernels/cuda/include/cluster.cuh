// Thread block clusters (sm_90): up to 8 blocks that run at the same time, wait for each other and reach into each other's shared memory.
//
// A kernel has clusters by __cluster_dims__(2, 1, 1), or a launch by cluster=(2, 1, 1); else each block is a cluster of its own.
// A block's shared memory is there from its start to its end. So cluster_sync() comes before the first access to another block's, to
// know that it has started, and after the last one, to keep it from leaving. mbarriers carry the news in between.
#pragma once
#include "mbarrier.cuh"

// Number of this block in its cluster, x first, and how many there are.
__device__ __forceinline__ int cluster_rank() {
#ifndef LK_EMULATOR
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#else
    return lk::cluster_rank();
#endif
}
__device__ __forceinline__ int cluster_size() {
#ifndef LK_EMULATOR
    int size;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
#else
    return lk::cluster_size();
#endif
}

// The barrier of the cluster, in two halves: what a thread did before it arrives is seen by all who wait. Every thread of every block
// arrives once and waits once, in turns; a thread that has left the kernel is not waited for.
__device__ __forceinline__ void cluster_arrive() {
#ifndef LK_EMULATOR
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#else
    lk::cluster_arrive();
#endif
}
__device__ __forceinline__ void cluster_wait() {
#ifndef LK_EMULATOR
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
    lk::cluster_wait();
#endif
}

// The same without a promise: nothing that the thread wrote is told to the others. Where it says only "I am here" or "I have read", for
// cluster_arrive() waits until all that the thread has written, to global memory too, has got there: some half a microsecond.
__device__ __forceinline__ void cluster_arrive_relaxed() {
#ifndef LK_EMULATOR
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#else
    lk::cluster_arrive();
#endif
}

// Both: __syncthreads() for the whole cluster. All its threads call it.
__device__ __forceinline__ void cluster_sync() {
#ifndef LK_EMULATOR
    cluster_arrive();
    cluster_wait();
#else
    lk::cluster_sync();
#endif
}

// Where `pointer`, into this block's shared memory, leads in that of block `rank`: for loads, stores and atomics like any other pointer.
template <class T>
__device__ __forceinline__ T* map_shared_rank(T* pointer, int rank) {
#ifndef LK_EMULATOR
    unsigned long long mapped;
    asm volatile("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(pointer), "r"(rank));
    return reinterpret_cast<T*>(mapped);
#else
    return static_cast<T*>(lk::map_shared_rank(const_cast<const void*>(static_cast<const volatile void*>(pointer)), rank));
#endif
}

// Arrives at the mbarrier of block `rank` that lies where `barrier` does in this one. Who waits there with mbarrier_wait_cluster() sees
// what this thread did before.
__device__ __forceinline__ void mbarrier_arrive_remote(Mbarrier* barrier, int rank) {
#ifndef LK_EMULATOR
    asm volatile(
        "{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote]; }" ::"r"(
            shared_address(barrier)),
        "r"(rank)
        : "memory");
#else
    lk::mbarrier_arrive_remote(reinterpret_cast<std::uint64_t*>(barrier), rank);
#endif
}

// The same for a thread that has only read, and gives a buffer back: it publishes nothing that it wrote. Releasing costs a fence that waits for
// all memory: with it, a matmul whose blocks share their tiles takes half as long again.
__device__ __forceinline__ void mbarrier_arrive_remote_read(Mbarrier* barrier, int rank) {
#ifndef LK_EMULATOR
    asm volatile("{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [remote]; }" ::"r"(
                     shared_address(barrier)),
                 "r"(rank)
                 : "memory");
#else
    lk::mbarrier_arrive_remote(reinterpret_cast<std::uint64_t*>(barrier), rank);
#endif
}

// mbarrier_try_wait and mbarrier_wait where arrivals come from other blocks too: those without _cluster take up only what this block did.
__device__ __forceinline__ bool mbarrier_try_wait_cluster(Mbarrier* barrier, int parity) {
#ifndef LK_EMULATOR
    unsigned done;
    asm volatile(
        "{ .reg .pred done; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return done;
#else
    return lk::mbarrier_test(reinterpret_cast<std::uint64_t*>(barrier), parity, true);
#endif
}
__device__ __forceinline__ void mbarrier_wait_cluster(Mbarrier* barrier, int parity) {
#ifndef LK_EMULATOR
    while (!mbarrier_try_wait_cluster(barrier, parity)) {
    }
#else
    lk::mbarrier_wait(reinterpret_cast<std::uint64_t*>(barrier), parity, true);
#endif
}
