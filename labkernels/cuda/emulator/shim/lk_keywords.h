// CUDA C++'s keywords and built-in variables, for the user's source: defined last, so that no header before stumbles over them.
#pragma once

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __managed__
#undef __launch_bounds__
#undef __forceinline__
#undef __noinline__
#undef __inline_hint__
#undef __align__
#undef __grid_constant__
#undef __cluster_dims__
#undef __maxnreg__
#define __global__
#define __device__
#define __host__
#define __shared__ thread_local
#define __constant__
#define __managed__
#define __launch_bounds__(...)
#define __cluster_dims__(...)           // compile.py finds it in the text
#define __maxnreg__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __inline_hint__
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

#ifdef LK_INSTRUMENTED              // through functions, so that the sanitizer does not see them as accesses of the user's
#define threadIdx lk::thread_index()
#define blockIdx lk::block_index()
#define blockDim lk::block_shape()
#define gridDim lk::grid_shape()
#else
#define threadIdx (lk_fiber->thread_idx)
#define blockIdx (lk_block->block_idx)
#define blockDim (lk_block->block_dim)
#define gridDim (lk_block->grid_dim)
#endif
