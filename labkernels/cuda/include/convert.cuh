// Kernels compute in float32 whatever the tensors hold: to_float on the way in, from_float<T> on the way out.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_float(__half value) { return __half2float(value); }

template <class T>
__device__ T from_float(float value);

template <>
__device__ inline float from_float<float>(float value) { return value; }

template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }

template <>
__device__ inline __half from_float<__half>(float value) { return __float2half_rn(value); }
