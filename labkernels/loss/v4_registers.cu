// Cross-entropy, v4: in registers. A cluster a row (Hopper), each thread holds 32 of its elements from the read to the write.
//   Idea      What is in registers is converted to float once, and its exponential is worked out once: exp(z - maximum of the thread) is kept in
//             the place of z, and the gradient is a factor of the thread times that. Warps send their maximum and sum straight to every block of
//             the cluster: one barrier in all.
//   Predicts  1 read and 1 write an element as v3, but half of v3's exponentials and no shared memory: 61 us for 512 rows of 128256 in bfloat16.
//   Measured  data/measured/h200/cross_entropy.csv: not the gain that was predicted. 512 rows of 128256 in bfloat16 109 -> 115 us, 2048 rows 386
//             -> 430; 2048 rows of 32000 98 -> 100. In float32, where half as many elements wait for each load, it is faster: 177 -> 146 us, 85%
//             of the limit.
//   Wastes    While a block waits for its loads only one other is there to compute.
#include "approx.cuh"
#include "cluster.cuh"
#include "row.cuh"
#include "vector.cuh"
#include "warp.cuh"

constexpr int MOST_BLOCKS = 8;
constexpr float LOG2_E = 1.4426950408889634f;

// As in v1. Each block of the cluster has VECTORS * WIDTH elements a thread.
template <class T, int WIDTH, int VECTORS>
__global__ void __launch_bounds__(512, VECTORS * WIDTH > 32 ? 1 : 2)
cross_entropy_registers(const T* logits, long long row_stride, T* gradient, long long gradient_stride, int rows, int vocab, const long long* targets,
                        Options options, const float* scale, int scale_step, float* losses, float* lses) {
    __shared__ Statistics of_warp[16 * MOST_BLOCKS];
    const int rank = cluster_rank(), size = cluster_size(), warps = blockDim.x / 32;
    const long long row = blockIdx.x / size;
    const int first = WIDTH * (rank * VECTORS * blockDim.x + threadIdx.x), step = WIDTH * blockDim.x;
    const long long target = targets[row];
    const bool ignored = target == options.ignore_index, inside = target >= 0 && target < vocab;
    logits += row * row_stride;
    if (gradient) gradient += row * gradient_stride;
    if (ignored) {  // all of the cluster
        const float zeros[WIDTH] = {};
        if (rank == 0 && threadIdx.x == 0) losses[row] = 0.0f;
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) {
            if (gradient && first + k * step < vocab) store_vector(gradient + first + k * step, zeros);
        }
        return;
    }
    cluster_arrive();

    float value[VECTORS][WIDTH];
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[k][j] = -CUDART_INF_F;
        if (first + k * step < vocab) load_vector(logits + first + k * step, value[k]);
    }
    Statistics s = nothing();
    float at_target = CUDART_NAN_F;
    bool has_target = !inside && rank == 0 && threadIdx.x == 0;  // somebody has to say NaN
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const int begin = first + k * step;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) s.max = fmaxf(s.max, value[k][j]);
        if (inside && begin <= target && target < begin + WIDTH) {
            has_target = true;
            at_target = to_float(logits[target]);
        }
        if (options.smoothing > 0.0f && begin < vocab) {
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) s.total += value[k][j];
        }
    }
    const float base = s.base() * LOG2_E;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) s.sum += value[k][j] = exp2_approx(__fmaf_rn(value[k][j], LOG2_E, -base));
    }

    Statistics all = s;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        all = merged(all, {__shfl_xor_sync(FULL_WARP, all.max, distance), __shfl_xor_sync(FULL_WARP, all.sum, distance),
                           __shfl_xor_sync(FULL_WARP, all.total, distance)});
    }
    cluster_wait();  // every block has started, and its shared memory is there
    if (lane_id() < size) map_shared_rank(of_warp, lane_id())[rank * warps + warp_id()] = all;
    cluster_sync();
    all = nothing();
    for (int i = lane_id(); i < warps * size; i += 32) all = merged(all, of_warp[i]);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        all = merged(all, {__shfl_xor_sync(FULL_WARP, all.max, distance), __shfl_xor_sync(FULL_WARP, all.sum, distance),
                           __shfl_xor_sync(FULL_WARP, all.total, distance)});
    }

    const float lse = log_sum_exp(all);
    if (has_target) losses[row] = loss_of(all, lse, at_target, vocab, options);
    if (lses && rank == 0 && threadIdx.x == 0) lses[row] = lse;
    if (!gradient) return;
    const Gradient slope(all, lse, vocab, options, inside ? scale[row * scale_step] : CUDART_NAN_F);
    const float factor = slope.factor * __expf(s.base() - lse);
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        if (first + k * step >= vocab) continue;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[k][j] = __fmaf_rn(factor, value[k][j], -slope.everywhere);
        store_vector(gradient + first + k * step, value[k]);
    }
    if (has_target && inside) gradient[target] = from_float<T>(slope(at_target, true));
}
