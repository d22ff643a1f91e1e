// CUDA's C functions for cp.async, in place of <cuda_pipeline_primitives.h>: the same queue as labkernels' cp_async.cuh.
#pragma once
#include "device/async_copy.h"

// The last `zeros` of `bytes` bytes become zero and are not read.
inline __attribute__((always_inline)) void __pipeline_memcpy_async(void* shared, const void* global, std::size_t bytes, std::size_t zeros = 0) {
    const int valid = static_cast<int>(bytes - zeros);
    if (bytes == 4) lk::copy_async<4>(shared, global, valid);
    else if (bytes == 8) lk::copy_async<8>(shared, global, valid);
    else if (bytes == 16) lk::copy_async<16>(shared, global, valid);
    else lk::fail("__pipeline_memcpy_async copies 4, 8 or 16 bytes");
}
inline void __pipeline_commit() { lk::commit_async_copies(); }
inline void __pipeline_wait_prior(std::size_t groups_left) { lk::wait_async_copies(static_cast<unsigned>(groups_left)); }
