// What emulated code sees of Hopper's asynchronous machinery: named barriers, mbarriers, bulk copies, warpgroup matrix products.
// The functions of labkernels/cuda/include call these; scheduler.cpp, async.cpp and wgmma.cpp define them.
//
// A copy or a matrix product is done at once, where it is issued: a program that waits as it must sees no difference. The
// sanitizer treats it as done by somebody else, some time before the mbarrier's phase or the group completes.
#pragma once
#include "lk_runtime.h"

namespace lk {

// What a tensor map says, where a GPU has 128 opaque bytes. Sizes, strides and box begin with the innermost axis.
struct TensorMapData {
    std::uint64_t address;
    std::uint64_t stride_bytes[4];      // of the axes 1, 2, ...; axis 0 is dense
    std::uint32_t size[5], box[5];
    std::uint32_t rank, element_bytes;
    std::uint32_t kind;                 // ElementKind, for additions
    std::uint32_t swizzle_bytes;        // 0, 32, 64 or 128
    std::uint32_t magic, unused[7];
};
static_assert(sizeof(TensorMapData) == 128, "a tensor map has 128 bytes");
constexpr std::uint32_t kTensorMapMagic = 0x4c4b544d;

enum ElementKind : std::uint32_t { kOther, kFloat32, kFloat16, kBfloat16, kInt32, kFloat8E4M3, kFloat8E5M2, kTf32, kInt8 };

void named_barrier(unsigned id, unsigned threads, bool wait);

void mbarrier_init(std::uint64_t* barrier, unsigned count);
void mbarrier_arrive(std::uint64_t* barrier, unsigned count, unsigned bytes);   // expects `bytes` more, then arrives `count` times
void mbarrier_expect(std::uint64_t* barrier, unsigned bytes);
bool mbarrier_test(std::uint64_t* barrier, unsigned parity, bool cluster_scope);
void mbarrier_wait(std::uint64_t* barrier, unsigned parity, bool cluster_scope);
void mbarrier_arrive_remote(std::uint64_t* barrier, unsigned rank);             // at its counterpart in that block

void bulk_load(void* shared, const void* global, unsigned bytes, std::uint64_t* barrier);
void bulk_store(void* global, const void* shared, unsigned bytes);
void tensor_load(void* shared, const void* map, const int* coordinates, unsigned rank, std::uint64_t* barrier);
void tensor_load_multicast(void* shared, const void* map, const int* coordinates, unsigned rank, std::uint64_t* barrier, unsigned blocks);
void tensor_store(const void* map, const int* coordinates, unsigned rank, const void* shared, bool add);
void bulk_commit();
void bulk_wait(unsigned pending, bool read_only);
void proxy_fence();
void grid_dependency_wait();

struct Wgmma {                          // one instruction, as one thread of the warpgroup issues it
    void* d;                            // n / 2 accumulators, floats or (kInt8) ints
    const std::uint32_t* a;             // 4 registers, null: from shared memory through descriptor_a
    std::uint64_t descriptor_a, descriptor_b;
    unsigned n;
    ElementKind kind;
    bool accumulate, transpose_a, transpose_b;
};
void wgmma(const Wgmma& instruction);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(unsigned pending);

unsigned cluster_rank();
unsigned cluster_size();
uint3 cluster_shape();                  // blocks along x, y and z
void cluster_sync();
void cluster_arrive();
void cluster_wait();
void* map_shared_rank(const void* address, unsigned rank);      // the same place in that block's shared memory

void* shared_pointer(unsigned offset);  // the inverse of shared_offset; null outside shared memory

}  // namespace lk
