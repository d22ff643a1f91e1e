// Softmax, v2: online. One warp owns a row; one pass finds the maximum and the sum together, a second writes the result.
//   Idea      Keep a pair: the largest value so far, and the sum so far measured against it. Two pairs merge into one, because the
//             factor by which a sum was measured against too small a maximum is known: exp(old maximum - new maximum).
//   Predicts  2 reads and 1 write an element, not 3 and 1 (v1): 0.75 of the time where no cache holds the rows. More arithmetic,
//             3 exps an element and not 2.
//   Measured  data/measured/h200/softmax.csv: float32, 16384 x 4096: v1 0.320 ms -> v2 0.263 ms.
//   Wastes    The second read: a short row would fit in the warp's registers. 4 bytes a load where 16 are possible. One warp for a
//             row however long it is.
#include <math_constants.h>

#include "convert.cuh"
#include "warp.cuh"

struct Pair {
    float max;
    float sum;  // of exp(x - max)
};

__device__ Pair merge(Pair a, Pair b) {
    const float max = fmaxf(a.max, b.max);
    const float base = max == -CUDART_INF_F ? 0.0f : max;  // nothing but -inf so far: exp(-inf - -inf) would be NaN
    return {max, a.sum * __expf(a.max - base) + b.sum * __expf(b.max - base)};
}

__device__ Pair warp_merge(Pair pair) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        const Pair other = {__shfl_xor_sync(FULL_WARP, pair.max, distance), __shfl_xor_sync(FULL_WARP, pair.sum, distance)};
        pair = merge(pair, other);
    }
    return pair;
}

// y = softmax of each row of x. x: (rows, cols), with any strides; y: (rows, cols), contiguous.
template <class T>
__global__ void softmax_online(const T* x, T* y, int rows, int cols, long long row_stride, long long col_stride) {
    const long long row = blockIdx.x * (blockDim.x / 32LL) + warp_id();
    if (row >= rows) return;
    x += row * row_stride;
    y += row * cols;

    Pair pair = {-CUDART_INF_F, 0.0f};
    for (int col = lane_id(); col < cols; col += 32) pair = merge(pair, {to_float(x[col * col_stride]), 1.0f});
    pair = warp_merge(pair);

    for (int col = lane_id(); col < cols; col += 32) y[col] = from_float<T>(__expf(to_float(x[col * col_stride]) - pair.max) / pair.sum);
}
