// AdamW of one tensor: everything that a weight needs in one pass over memory.
//   Idea      A step of Adam touches each weight, its gradient and two moments once and computes next to nothing. So read them once, 16
//             bytes at a time: clipping is a factor that is multiplied in, and rounding the weight to bfloat16 is a store and not a pass
//             of its own.
//   Predicts  bfloat16 weights with float32 masters and moments: 28 bytes a weight, 18 GB for 645M, 4.3 ms at 4.3 TB/s. Rounded
//             stochastically, no masters: 22 bytes. With bfloat16 moments, too: 14.
//   Measured  In a profile of a step of 645M: 5.1 ms in 146 launches with float32 masters and moments, 3.5 TB/s, and 3.0 ms with bfloat16
//             moments and no masters, 3.0 TB/s.
//   Wastes    A launch for each tensor. Launched early (sm_90), a tensor's blocks begin where the last one's leave room: in turns 258.5 -> 257.1 ms a
//             step, which varies by as much.
#include "approx.cuh"
#include "fence.cuh"
#include "vector.cuh"

// 32 well mixed bits for each number: the finaliser of PCG (Jarzynski and Olano, Hash functions for GPU rendering, 2020).
__device__ __forceinline__ unsigned mixed(unsigned x) {
    x = x * 747796405u + 2891336453u;
    x = (x >> (x >> 28) + 4 ^ x) * 277803737u;
    return x >> 22 ^ x;
}

// x rounded to bfloat16 up or down with the probability that makes the mean x; `random` has 16 bits. Kept finite numbers stay finite or
// become infinite.
__device__ __forceinline__ float stochastic_bf16(float x, unsigned random) {
    if (!isfinite(x)) return x;
    return __uint_as_float((__float_as_uint(x) + (random & 0xffffu)) & 0xffff0000u);
}


// weight, grad, m and v have n elements; master, float32, where MASTER. `factor` is multiplied into the gradient (null: 1); where it is
// not finite nothing is changed. `corrections` has 1 / (1 - beta1^t) and 1 / sqrt(1 - beta2^t), t the steps that were taken, which the
// host does not know. `seed` is another one for each tensor. 8 elements a thread.
template <class Weight, class Grad, class Moment, bool MASTER, bool STOCHASTIC>
__global__ void __launch_bounds__(256)
    adamw(Weight* weight, float* master, const Grad* grad, Moment* m, Moment* v, const float* factor, const float* corrections, long long n,
          float lr, float beta1, float beta2, float eps, float decay, unsigned seed) {
    constexpr int N = 8;
    // Before anything is written: the next kernel reads only other tensors before it waits, whether it is this one for the next weight (optim.py launches
    // that early only right after another), or one that reads weights early (cuda/settled.py: this weight's version says that it was written to).
    grid_dependency_launch();
    const float scale = factor == nullptr ? 1.0f : *factor, rate = lr * corrections[0], correction2 = corrections[1];
    if (!isfinite(scale)) return grid_dependency_wait();
    const long long at = N * (static_cast<long long>(blockIdx.x) * 256 + threadIdx.x);
    if (at >= n) return;
    const bool whole = at + N <= n;
    float w[N], g[N], first[N], second[N];
    if (whole) {
        if (MASTER) load_vector(master + at, w);
        else load_vector(weight + at, w);
        load_vector(grad + at, g);
        load_vector(m + at, first);
        load_vector(v + at, second);
    } else {
        for (int i = 0; i < N; ++i) {
            const bool there = at + i < n;
            w[i] = !there ? 0.0f : MASTER ? master[at + i] : to_float(weight[at + i]);
            g[i] = there ? to_float(grad[at + i]) : 0.0f;
            first[i] = there ? to_float(m[at + i]) : 0.0f;
            second[i] = there ? to_float(v[at + i]) : 0.0f;
        }
    }
    unsigned random = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const float gradient = g[i] * scale;
        first[i] += (1.0f - beta1) * (gradient - first[i]);
        second[i] += (1.0f - beta2) * (gradient * gradient - second[i]);
        w[i] -= decay * w[i] + rate * first[i] * rcp_approx(sqrt_approx(second[i]) * correction2 + eps);
        g[i] = w[i];  // from here on: the weight as it is stored
        if (STOCHASTIC) {
            random = i % 2 ? random >> 16 : mixed(static_cast<unsigned>(at + i) ^ mixed(seed + static_cast<unsigned>(at >> 32)));
            g[i] = stochastic_bf16(w[i], random);
        }
    }
    if (whole) {
        if (MASTER) store_vector(master + at, w);
        store_vector(weight + at, g);
        store_vector(m + at, first);
        store_vector(v + at, second);
    } else {
        for (int i = 0; i < N && at + i < n; ++i) {
            if (MASTER) master[at + i] = w[i];
            weight[at + i] = from_float<Weight>(g[i]);
            m[at + i] = from_float<Moment>(first[i]);
            v[at + i] = from_float<Moment>(second[i]);
        }
    }
    grid_dependency_wait();  // nothing of this tensor depends on the one before, but whoever follows takes both for done
}
