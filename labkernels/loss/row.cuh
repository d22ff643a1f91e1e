// What a row of logits z has for a loss and a gradient, for every version of `cross_entropy`:
//
//   loss      lse - (1 - smoothing) z[target] - smoothing mean(z) + z_weight lse^2,   lse = log(sum(exp(z)))
//   gradient  scale (softmax(z) (1 + 2 z_weight lse) - (1 - smoothing) [at target] - smoothing / vocab)
//
// A row whose target is ignore_index has loss 0 and gradient 0; one whose target is no token has NaN for both.
#pragma once
#include <math_constants.h>

#include "convert.cuh"

struct Options {
    long long ignore_index;
    float smoothing, z_weight;
};

// A sum of exponentials, measured against the largest exponent so far, and the sum of the logits themselves.
struct Statistics {
    float max, sum, total;

    __device__ float base() const { return max == -CUDART_INF_F ? 0.0f : max; }  // nothing but -inf so far: exp(-inf - -inf) would be NaN
};
__device__ inline Statistics nothing() { return {-CUDART_INF_F, 0.0f, 0.0f}; }
__device__ inline Statistics merged(Statistics a, Statistics b) {
    const Statistics both = {fmaxf(a.max, b.max), 0.0f, a.total + b.total};
    return {both.max, a.sum * __expf(a.max - both.base()) + b.sum * __expf(b.max - both.base()), both.total};
}

struct Gradient {
    float shift, factor;      // of exp(z - shift)
    float everywhere, target;  // to be subtracted

    __device__ Gradient(Statistics s, float lse, int vocab, Options o, float scale)
        : shift(lse), factor(scale * (1.0f + 2.0f * o.z_weight * lse)), everywhere(scale * o.smoothing / vocab), target(scale * (1.0f - o.smoothing)) {}
    __device__ float operator()(float logit, bool is_target) const {
        return factor * __expf(logit - shift) - everywhere - (is_target ? target : 0.0f);
    }
};

__device__ inline float log_sum_exp(Statistics s) { return s.base() + logf(s.sum); }
__device__ inline float loss_of(Statistics s, float lse, float at_target, int vocab, Options o) {
    const float smoothed = o.smoothing > 0.0f ? o.smoothing * (s.total / vocab) : 0.0f;
    return lse - (1.0f - o.smoothing) * at_target - smoothed + o.z_weight * lse * lse;
}
