// NVIDIA's headers include this one, and PyPI's nvidia-cuda-runtime does not bring it.
// In plain C++ the execution-space keywords mean nothing; lk_runtime.h gives them the emulator's meaning afterwards.
#pragma once
#define __NV_NO_VECTOR_DEPRECATION_DIAG 1
#ifndef __host__
#define __host__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#endif
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define CUDARTAPI
#define CUDARTAPI_CDECL
