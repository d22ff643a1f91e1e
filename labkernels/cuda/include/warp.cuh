// What the 32 lanes of a warp work out together, in registers, without shared memory and without __syncthreads.
#pragma once

constexpr unsigned FULL_WARP = 0xffffffffu;

__device__ inline int lane_id() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32; }
__device__ inline int warp_id() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) / 32; }

// Combines one value a lane, in log2(32) = 5 steps. Every lane gets the result, bit for bit the same one, because `combine(a, b)`
// equals `combine(b, a)`. All 32 lanes must call it.
template <class T, class Combine>
__device__ T warp_reduce(T value, Combine combine) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value = combine(value, __shfl_xor_sync(FULL_WARP, value, distance));
    return value;
}

template <class T>
__device__ T warp_sum(T value) {
    return warp_reduce(value, [](T a, T b) { return a + b; });
}

__device__ inline float warp_max(float value) {
    return warp_reduce(value, [](float a, float b) { return fmaxf(a, b); });
}
