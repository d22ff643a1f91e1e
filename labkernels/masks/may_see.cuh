// Which keys a query may see, as in labkernels.attention: query i of seq_len stands at key i + kv_len - seq_len.
#pragma once
#include "vector.cuh"

// `left` and `right`: how many keys before and after its own place a query sees; negative: all. Causal is right = 0.
__device__ inline bool may_see(int place, int key, long long length, int left, int right) {
    return key < length && (left < 0 || key >= place - left) && (right < 0 || key <= place + right);
}

// Masks of bools are bytes of 0 and 1.
template <class T>
__device__ T mask_value(float value) { return from_float<T>(value); }
template <>
__device__ inline unsigned char mask_value<unsigned char>(float value) { return static_cast<unsigned char>(value); }
