// The bulk copy engine, TMA (sm_90): one thread moves a whole tile between global and shared memory, and does not wait.
//
// A load tells an mbarrier how many bytes have come (mbarrier_arrive_expect_tx before, mbarrier_wait after). A store belongs to the
// issuing thread's open group: tma_commit() closes it, tma_wait_read<N>() waits until shared memory has been read by all but
// the last N groups, so that it may be reused, tma_wait<N>() until they have been written too.
//
// A tensor map (labkernels.cuda.tensor_map) is a parameter, `const __grid_constant__ TensorMap a`. Coordinates count elements and
// begin with the innermost axis; what lies outside the tensor is loaded as 0 and not stored. Keep to coordinates from 0:
// on an H200 a store that begins at a negative one is an illegal instruction, and so are some loads. Shared memory must lie on a multiple of
// 128 bytes; with a swizzle of W bytes the pattern repeats every 8 W bytes, so let a tile begin there.
//
// In a cluster (cluster.cuh) tma_load_multicast brings one box to several blocks: to the place of `shared` in each, where it is counted
// by the mbarrier at the place of `barrier`. Each expects the bytes at its own, and all have initialised theirs: cluster_sync() before.
#pragma once
#include "mbarrier.cuh"

struct
#ifndef LK_EMULATOR
    alignas(64)
#endif
    TensorMap {
    unsigned long long opaque[16];
};

#ifndef LK_EMULATOR
#define LK_TMA_LOAD(RANK, COORDINATES, ...)                                                                                      \
    asm volatile("cp.async.bulk.tensor." #RANK "d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, " COORDINATES \
                 "], [%2];" ::"r"(shared_address(shared)), "l"(&map), "r"(shared_address(barrier)), __VA_ARGS__                  \
                 : "memory")
#define LK_TMA_LOAD_MULTICAST(RANK, COORDINATES, ...)                                                                          \
    asm volatile("cp.async.bulk.tensor." #RANK                                                                                 \
                 "d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, " COORDINATES "], [%2], %3;" ::"r"( \
                     shared_address(shared)),                                                                                  \
                 "l"(&map), "r"(shared_address(barrier)), "h"(static_cast<unsigned short>(blocks)), __VA_ARGS__                \
                 : "memory")
#define LK_TMA_STORE(INSTRUCTION, RANK, ADD, COORDINATES, ...)                                                              \
    asm volatile(INSTRUCTION ".async.bulk.tensor." #RANK "d.global.shared::cta" ADD ".bulk_group [%1, " COORDINATES "], [%0];" :: \
                     "r"(shared_address(shared)), "l"(&map), __VA_ARGS__                                                    \
                 : "memory")
#define LK_TMA_BODY(RANK, LOAD_AT, STORE_AT, ARRAY, ...)                                                                  \
    __device__ __forceinline__ void tma_load(void* shared, const TensorMap& map, Mbarrier* barrier, LK_COORDINATES_##RANK) { \
        LK_TMA_LOAD(RANK, LOAD_AT, __VA_ARGS__);                                                                          \
    }                                                                                                                     \
    __device__ __forceinline__ void tma_store(const TensorMap& map, const void* shared, LK_COORDINATES_##RANK) {          \
        LK_TMA_STORE("cp", RANK, "", STORE_AT, __VA_ARGS__);                                                              \
    }                                                                                                                     \
    __device__ __forceinline__ void tma_reduce_add(const TensorMap& map, const void* shared, LK_COORDINATES_##RANK) {     \
        LK_TMA_STORE("cp.reduce", RANK, ".add", STORE_AT, __VA_ARGS__);                                                   \
    }
#else
#define LK_TMA_BODY(RANK, LOAD_AT, STORE_AT, ARRAY, ...)                                                                     \
    __device__ __forceinline__ void tma_load(void* shared, const TensorMap& map, Mbarrier* barrier, LK_COORDINATES_##RANK) { \
        const int at[RANK] = {ARRAY};                                                                                        \
        lk::tensor_load(shared, &map, at, RANK, reinterpret_cast<std::uint64_t*>(barrier));                                  \
    }                                                                                                                        \
    __device__ __forceinline__ void tma_store(const TensorMap& map, const void* shared, LK_COORDINATES_##RANK) {             \
        const int at[RANK] = {ARRAY};                                                                                        \
        lk::tensor_store(&map, at, RANK, shared, false);                                                                     \
    }                                                                                                                        \
    __device__ __forceinline__ void tma_reduce_add(const TensorMap& map, const void* shared, LK_COORDINATES_##RANK) {        \
        const int at[RANK] = {ARRAY};                                                                                        \
        lk::tensor_store(&map, at, RANK, shared, true);                                                                      \
    }
#endif
#define LK_COMMA ,
#define LK_COORDINATES_1 int x0
#define LK_COORDINATES_2 int x0, int x1
#define LK_COORDINATES_3 int x0, int x1, int x2
#define LK_COORDINATES_4 int x0, int x1, int x2, int x3
#define LK_COORDINATES_5 int x0, int x1, int x2, int x3, int x4

// tma_load(shared, map, barrier, x0, ...): the box whose first element is (..., x1, x0) comes to shared memory.
// tma_store(map, shared, x0, ...): it goes back. tma_reduce_add(map, shared, x0, ...): it is added to what is there, atomically.
LK_TMA_BODY(1, "{%3}", "{%2}", x0, "r"(x0))
LK_TMA_BODY(2, "{%3, %4}", "{%2, %3}", x0 LK_COMMA x1, "r"(x0), "r"(x1))
LK_TMA_BODY(3, "{%3, %4, %5}", "{%2, %3, %4}", x0 LK_COMMA x1 LK_COMMA x2, "r"(x0), "r"(x1), "r"(x2))
LK_TMA_BODY(4, "{%3, %4, %5, %6}", "{%2, %3, %4, %5}", x0 LK_COMMA x1 LK_COMMA x2 LK_COMMA x3, "r"(x0), "r"(x1), "r"(x2), "r"(x3))
LK_TMA_BODY(5, "{%3, %4, %5, %6, %7}", "{%2, %3, %4, %5, %6}", x0 LK_COMMA x1 LK_COMMA x2 LK_COMMA x3 LK_COMMA x4, "r"(x0), "r"(x1),
            "r"(x2), "r"(x3), "r"(x4))

// tma_load of a box that nobody will ask for again: what L2 has of it is the first to make room.
__device__ __forceinline__ void tma_load_once(void* shared, const TensorMap& map, Mbarrier* barrier, int x0, int x1) {
#ifndef LK_EMULATOR
    const unsigned long long evict_first = 0x12f0000000000000ull;  // what createpolicy.fractional.L2::evict_first.b64 gives for all of it
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(
                     shared_address(shared)),
                 "l"(&map), "r"(shared_address(barrier)), "r"(x0), "r"(x1), "l"(evict_first)
                 : "memory");
#else
    tma_load(shared, map, barrier, x0, x1);
#endif
}

#ifndef LK_EMULATOR
#define LK_TMA_MULTICAST(RANK, AT, ARRAY, ...)                                                                                     \
    __device__ __forceinline__ void tma_load_multicast(void* shared, const TensorMap& map, Mbarrier* barrier, int blocks,          \
                                                       LK_COORDINATES_##RANK) {                                                    \
        LK_TMA_LOAD_MULTICAST(RANK, AT, __VA_ARGS__);                                                                              \
    }
#else
#define LK_TMA_MULTICAST(RANK, AT, ARRAY, ...)                                                                                     \
    __device__ __forceinline__ void tma_load_multicast(void* shared, const TensorMap& map, Mbarrier* barrier, int blocks,          \
                                                       LK_COORDINATES_##RANK) {                                                    \
        const int at[RANK] = {ARRAY};                                                                                              \
        lk::tensor_load_multicast(shared, &map, at, RANK, reinterpret_cast<std::uint64_t*>(barrier), blocks);                      \
    }
#endif

// tma_load_multicast(shared, map, barrier, blocks, x0, ...): tma_load for each block of the cluster whose rank r has its bit, 1 << r, in `blocks`.
LK_TMA_MULTICAST(1, "{%4}", x0, "r"(x0))
LK_TMA_MULTICAST(2, "{%4, %5}", x0 LK_COMMA x1, "r"(x0), "r"(x1))
LK_TMA_MULTICAST(3, "{%4, %5, %6}", x0 LK_COMMA x1 LK_COMMA x2, "r"(x0), "r"(x1), "r"(x2))
LK_TMA_MULTICAST(4, "{%4, %5, %6, %7}", x0 LK_COMMA x1 LK_COMMA x2 LK_COMMA x3, "r"(x0), "r"(x1), "r"(x2), "r"(x3))
LK_TMA_MULTICAST(5, "{%4, %5, %6, %7, %8}", x0 LK_COMMA x1 LK_COMMA x2 LK_COMMA x3 LK_COMMA x4, "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(x4))

// Plain bytes, without a tensor map: both addresses and `bytes` are multiples of 16.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, int bytes, Mbarrier* barrier) {
#ifndef LK_EMULATOR
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
#else
    lk::bulk_load(shared, global, bytes, reinterpret_cast<std::uint64_t*>(barrier));
#endif
}

__device__ __forceinline__ void bulk_store(void* global, const void* shared, int bytes) {
#ifndef LK_EMULATOR
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(global)),
                 "r"(shared_address(shared)), "r"(bytes)
                 : "memory");
#else
    lk::bulk_store(global, shared, bytes);
#endif
}

__device__ __forceinline__ void tma_commit() {
#ifndef LK_EMULATOR
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
    lk::bulk_commit();
#endif
}

template <int PENDING>
__device__ __forceinline__ void tma_wait() {
#ifndef LK_EMULATOR
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
#else
    lk::bulk_wait(PENDING, false);
#endif
}

template <int PENDING>
__device__ __forceinline__ void tma_wait_read() {
#ifndef LK_EMULATOR
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
#else
    lk::bulk_wait(PENDING, true);
#endif
}

#undef LK_TMA_LOAD
#undef LK_TMA_LOAD_MULTICAST
#undef LK_TMA_MULTICAST
#undef LK_TMA_STORE
#undef LK_TMA_BODY
#undef LK_COMMA
#undef LK_COORDINATES_1
#undef LK_COORDINATES_2
#undef LK_COORDINATES_3
#undef LK_COORDINATES_4
#undef LK_COORDINATES_5
