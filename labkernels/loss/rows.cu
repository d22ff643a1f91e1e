// What is left to be done a row at a time in `linear_cross_entropy` v6, whose matmuls leave exp(z - shift): before them the shifts, after them the
// losses and the rows' factors, and at the end the targets' part of both gradients, which is one row of W, or of x, a token.
//
//   loss = lse - z[target]      dlogits = scale (exp(z - shift) / sum - [at target])
//   dx = scale / sum (E W) - scale W[target]      dW = E^T (scale / sum x) - sum over tokens at a target of scale x
//
// x, weight: rows of `hidden` elements, a multiple of WIDTH. A target that is no token makes its row NaN. lses and shifts are in units of log2.
#include <math_constants.h>

#include "block.cuh"
#include "vector.cuh"

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// A warp a row: log2(e) x W[target]; infinite where the target is to be ignored, so that its exponentials are 0.
template <class T, int WIDTH>
__global__ void shifts_of_rows(const T* x, long long x_stride, const T* weight, long long weight_stride, int rows, int hidden, int vocab,
                               const long long* targets, long long ignore_index, float* shifts, int* raises) {
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const long long target = targets[row];
    const bool inside = target >= 0 && target < vocab && target != ignore_index;
    float sum = 0.0f;
    for (int i = WIDTH * lane; inside && i < hidden; i += 32 * WIDTH) {
        float of_x[WIDTH], of_weight[WIDTH];
        load_vector(x + row * x_stride + i, of_x);
        load_vector(weight + target * weight_stride + i, of_weight);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) sum += of_x[j] * of_weight[j];
    }
    sum = warp_sum(sum);
    if (lane > 0) return;
    shifts[row] = target == ignore_index ? CUDART_INF_F : inside ? LOG2_E * sum : CUDART_NAN_F;
    raises[row] = 0;
}

// A block a row: its loss, its lse, its factor scale / sum, and factor * x.
template <class T, int WIDTH>
__global__ void finish_rows(const float* sums, int tiles, int rows, const T* x, long long x_stride, T* scaled, int hidden, const float* shifts,
                            const int* raises, const float* scale, int scale_step, float* losses, float* lses, float* factors) {
    const int row = blockIdx.x;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < tiles; i += blockDim.x) sum += sums[static_cast<long long>(i) * rows + row];
    sum = block_sum(sum);
    const float shift = shifts[row], raise = __int_as_float(raises[row]);
    const bool ignored = shift == CUDART_INF_F;
    const float factor = ignored ? 0.0f : scale[row * scale_step] / sum, from_target = raise + log2f(sum);
    if (threadIdx.x == 0) {
        losses[row] = ignored ? 0.0f : LN_2 * from_target;
        lses[row] = ignored ? CUDART_INF_F : shift + from_target;
        factors[row] = factor;
    }
    for (int i = WIDTH * threadIdx.x; i < hidden; i += WIDTH * blockDim.x) {
        float value[WIDTH];
        load_vector(x + row * x_stride + i, value);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[j] *= factor;
        store_vector(scaled + static_cast<long long>(row) * hidden + i, value);
    }
}

// A block a row: dx = factor sum - scale W[target], and 0 in the place of the sums.
template <class T, int WIDTH>
__global__ void finish_dx(float* sums, T* dx, const T* weight, long long weight_stride, int hidden, int vocab, const long long* targets,
                          long long ignore_index, const float* factors, const float* scale, int scale_step) {
    const int row = blockIdx.x;
    const long long target = targets[row];
    const bool inside = target >= 0 && target < vocab && target != ignore_index;
    const float factor = factors[row], at_target = inside ? scale[row * scale_step] : 0.0f;
    for (int i = WIDTH * threadIdx.x; i < hidden; i += WIDTH * blockDim.x) {
        const float zeros[WIDTH] = {};
        float value[WIDTH], of_weight[WIDTH] = {};
        float* const place = sums + static_cast<long long>(row) * hidden + i;
        load_vector(place, value);
        store_vector(place, zeros);
        if (inside) load_vector(weight + target * weight_stride + i, of_weight);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[j] = __fmaf_rn(factor, value[j], -at_target * of_weight[j]);
        store_vector(dx + static_cast<long long>(row) * hidden + i, value);
    }
}

// A block a token, in the order of targets; the first of those with one target takes all of them: dW[target] -= scale x.
template <class T, int WIDTH>
__global__ void finish_dweight(T* dweight, const T* x, long long x_stride, int tokens, int hidden, int vocab, const long long* targets,
                               const long long* order, long long ignore_index, const float* scale, int scale_step) {
    const int at = blockIdx.x;
    const long long target = targets[order[at]];
    if (target < 0 || target >= vocab || target == ignore_index) return;
    if (at > 0 && targets[order[at - 1]] == target) return;
    for (int i = WIDTH * threadIdx.x; i < hidden; i += WIDTH * blockDim.x) {
        float value[WIDTH], sum[WIDTH] = {};
        for (int other = at; other < tokens; ++other) {
            const long long token = order[other];
            if (targets[token] != target) break;
            const float by = scale[token * scale_step];
            load_vector(x + token * x_stride + i, value);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) sum[j] = __fmaf_rn(by, value[j], sum[j]);
        }
        T* const place = dweight + target * hidden + i;
        load_vector(place, value);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[j] -= sum[j];
        store_vector(place, value);
    }
}
