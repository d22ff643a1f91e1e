// The largest logit of a row, and which it is: what the head finds on its way and the next step begins with.
#pragma once
#include "warp.cuh"

struct Best {
    float logit;
    int token;  // -1: among the logits was NaN or infinity, and nothing can be drawn
};

// Equal logits: the first of them.
__device__ __forceinline__ Best better(const Best& a, const Best& b) {
    if (a.token < 0 || b.token < 0) return {0.0f, -1};
    return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
}
__device__ __forceinline__ Best best_of_logit(float logit, int token) { return logit < INFINITY ? Best{logit, token} : Best{0.0f, -1}; }  // false for NaN
__device__ __forceinline__ Best nothing_yet() { return {-INFINITY, 0x7fffffff}; }

__device__ __forceinline__ Best best_of_lanes(Best best, int lanes) {
    for (int distance = 1; distance < lanes; distance *= 2) {
        best = better(best, {__shfl_xor_sync(FULL_WARP, best.logit, distance), __shfl_xor_sync(FULL_WARP, best.token, distance)});
    }
    return best;
}
