// What all threads of a block work out together: each warp in registers, then the first lanes of the warps through shared memory.
// The block must be a whole number of warps, and all of its threads must call.
#pragma once
#include <math_constants.h>

#include "warp.cuh"

// `combine(a, b)` must equal `combine(b, a)`, and `combine(a, neutral)` must equal `a`. Every thread gets the result.
template <class T, class Combine>
__device__ T block_reduce(T value, T neutral, Combine combine) {
    __shared__ T of_warp[32];
    const int warps = blockDim.x * blockDim.y * blockDim.z / 32;
    value = warp_reduce(value, combine);
    __syncthreads();  // the last call's values have been read by everyone
    if (lane_id() == 0) of_warp[warp_id()] = value;
    __syncthreads();
    return warp_reduce(lane_id() < warps ? of_warp[lane_id()] : neutral, combine);
}

__device__ inline float block_sum(float value) {
    return block_reduce(value, 0.0f, [](float a, float b) { return a + b; });
}

__device__ inline float block_max(float value) {
    return block_reduce(value, -CUDART_INF_F, [](float a, float b) { return fmaxf(a, b); });
}
