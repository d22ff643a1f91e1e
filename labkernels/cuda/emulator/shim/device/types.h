// CUDA's types, from NVIDIA's own headers: float4 and its kin, dim3, half, bfloat16 and fp8.
// Compiled as plain C++ they know most arithmetic already; half.h adds what they keep for the device.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <math.h>
#include <type_traits>

// The host's API (cudaMalloc, cudaMemcpy ...) is not here: memory belongs to the tensors that Python passes. With their
// guards set, these headers give nothing more to whoever includes them.
#define __CUDA_RUNTIME_API_H__
#define __CUDA_RUNTIME_H__
#define __DEVICE_LAUNCH_PARAMETERS_H__
#define __DEVICE_FUNCTIONS_H__

#include <vector_types.h>
#include <vector_functions.h>
#include <nv/target>

// Where those headers choose between PTX and plain C++, only the latter can be compiled here, with one exception: a
// half2 is copied as one 32-bit word on the device and half by half on a host. The sanitizer counts accesses, so it must
// be one word here too. The device's text is told by its first token, __HALF2_TO_UI or __BFLOAT162_TO_UI.
#pragma push_macro("NV_IF_ELSE_TARGET")
#undef NV_IF_ELSE_TARGET
#define NV_IF_ELSE_TARGET(target, device, ...) \
    LK_CHOOSE(LK_IS_##device, LK_TAKE_DEVICE, LK_TAKE_HOST, ~)(device, __VA_ARGS__)
#define LK_IS___HALF2_TO_UI(copied) ~, ~
#define LK_IS___BFLOAT162_TO_UI(copied) ~, ~
#define LK_CHOOSE(...) LK_THIRD(__VA_ARGS__)
#define LK_THIRD(first, second, third, ...) third
#define LK_TAKE_DEVICE(device, ...) device
#define LK_TAKE_HOST(device, ...) __VA_ARGS__
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#pragma pop_macro("NV_IF_ELSE_TARGET")
#undef LK_IS___HALF2_TO_UI
#undef LK_IS___BFLOAT162_TO_UI
#undef LK_CHOOSE
#undef LK_THIRD
#undef LK_TAKE_DEVICE
#undef LK_TAKE_HOST

#include <cuda_fp8.h>
#include <math_constants.h>

// The shim's one-line functions have no frame of their own: what they do happens at the user's source line.
#define LK_DEVICE inline __attribute__((always_inline))
