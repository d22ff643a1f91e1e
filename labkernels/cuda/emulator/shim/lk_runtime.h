// What emulated CUDA C++ sees of the machine that runs it: thread indices, barriers, warp collectives.
//
// One OS thread runs one block at a time. Each CUDA thread of the block is a fiber on that OS thread; a barrier or a
// warp-wide operation is a place where a fiber lets others run. `__shared__` is storage of the OS thread.
// The scheduler is in scheduler.cpp, the sanitizer's hooks in hooks.cpp.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector_types.h>

#define LK_EMULATOR 1

namespace lk {

struct Fiber {              // the part of a CUDA thread that emulated code reads; the scheduler knows the rest
    uint3 thread_idx;
};
struct Block {              // the part of a block that emulated code reads
    uint3 block_idx;
    dim3 block_dim, grid_dim;
    void* dynamic_shared;
};

// A warp-wide operation. The calling lane waits until every living lane named in `mask` has called; the last to arrive
// runs `run(mask, lanes)` once for all (lanes[i] is lane i's `data`, null where lane i takes no part), then all go on.
void collective(unsigned mask, void* data, void (*run)(unsigned mask, void** lanes), const char* what);

unsigned lane();                              // index of the calling thread in its warp, 0 to 31
unsigned active_mask();                       // lanes at this very call: asked when no lane of the warp can get here any more
[[noreturn]] void fail(const char* text);     // ends the launch; Python raises LaunchError with block and thread
int device_printf(const char* format, ...) __attribute__((format(printf, 1, 2)));
void on_atomic(void* address, unsigned size, void* pc);      // every atomic calls this first
void undefined_lane(const char* what, unsigned lane);        // a shuffle read a lane that takes no part in it
void yield();                                 // a spin loop's politeness: others of the block may run
unsigned long long clock();
unsigned shared_offset(const void* address);  // byte offset in the block's shared memory, ~0u where it is elsewhere

uint3 thread_index() __attribute__((const));  // of the calling thread, which never changes
uint3 block_index() __attribute__((const));
uint3 block_shape() __attribute__((const));
uint3 grid_shape() __attribute__((const));
void* dynamic_shared() __attribute__((const));

enum BarrierVote { kVoteNone, kVoteCount, kVoteAnd, kVoteOr };
int block_barrier(BarrierVote vote, int predicate);
void warp_barrier(unsigned mask);
void thread_fence();

}  // namespace lk

extern "C" {
extern __thread lk::Fiber* lk_fiber __attribute__((tls_model("initial-exec")));
extern __thread lk::Block* lk_block __attribute__((tls_model("initial-exec")));
}

constexpr int warpSize = 32;

#define __syncthreads() ((void)lk::block_barrier(lk::kVoteNone, 0))
#define __syncthreads_count(predicate) lk::block_barrier(lk::kVoteCount, (predicate) != 0)
#define __syncthreads_and(predicate) lk::block_barrier(lk::kVoteAnd, (predicate) != 0)
#define __syncthreads_or(predicate) lk::block_barrier(lk::kVoteOr, (predicate) != 0)
inline void __syncwarp(unsigned mask = 0xffffffffu) { lk::warp_barrier(mask); }
#define __threadfence() lk::thread_fence()
#define __threadfence_block() lk::thread_fence()
#define __threadfence_system() lk::thread_fence()
inline void __nanosleep(unsigned) { lk::yield(); }
