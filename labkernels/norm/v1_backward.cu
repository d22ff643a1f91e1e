// Norms backward, v1: naive. One warp a row for dx, one thread a column for dweight and dshift.
//   Idea      dx needs sums along a row, dweight sums along a column: two kernels, each of which walks its own way. The first leaves
//             each row's mean and 1 / standard deviation to the second.
//   Predicts  dx: 3 walks over x and 2 over the gradient where one each would do. dweight: another read of both. Twice the bytes at
//             least; and one thread a column is not enough threads, 4096 on a GPU that holds 270000.
//   Measured  data/measured/h200/rms_norm_backward.csv: 7.07 ms for 16384 rows of 4096 in bfloat16, 1% of the limit; layer_norm_backward.csv:
//             7.12.
//   Wastes    More than half of the bytes, and most of the GPU in the second kernel.
#include "norm.cuh"

// dx (rows, cols), contiguous, from the gradient of the result and x, with any strides; `added` (rows, cols), contiguous, or null is
// added to dx. statistics (rows, 2): mean and 1 / standard deviation.
template <int KIND, class T, class W>
__global__ void norm_backward_rows(const T* gradient, const T* x, const W* weight, const T* added, T* dx, float* statistics, int rows,
                                   int cols, long long gradient_stride, long long gradient_step, long long x_stride, long long x_step,
                                   float eps) {
    const long long row = blockIdx.x * (blockDim.x / 32LL) + warp_id();
    if (row >= rows) return;
    gradient += row * gradient_stride;
    x += row * x_stride;

    float mean = 0.0f;
    if constexpr (static_cast<Norm>(KIND) == Norm::kLayer) {
        for (int col = lane_id(); col < cols; col += 32) mean += to_float(x[col * x_step]);
        mean = warp_sum(mean) / cols;
    }
    float squares = 0.0f;
    for (int col = lane_id(); col < cols; col += 32) {
        const float value = to_float(x[col * x_step]) - mean;
        squares += value * value;
    }
    const float rstd = rsqrtf(warp_sum(squares) / cols + eps);
    float sum = 0.0f, along = 0.0f;
    for (int col = lane_id(); col < cols; col += 32) {
        const float g = to_float(gradient[col * gradient_step]) * (weight != nullptr ? to_float(weight[col]) : 1.0f);
        sum += g;
        along += g * (to_float(x[col * x_step]) - mean) * rstd;
    }
    sum = static_cast<Norm>(KIND) == Norm::kLayer ? warp_sum(sum) / cols : 0.0f;
    along = warp_sum(along) / cols;
    for (int col = lane_id(); col < cols; col += 32) {
        const float g = to_float(gradient[col * gradient_step]) * (weight != nullptr ? to_float(weight[col]) : 1.0f);
        const float value = rstd * (g - sum - (to_float(x[col * x_step]) - mean) * rstd * along);
        dx[row * cols + col] = from_float<T>(added != nullptr ? value + to_float(added[row * cols + col]) : value);
    }
    if (lane_id() == 0) statistics[2 * row] = mean, statistics[2 * row + 1] = rstd;
}

// dweight and dshift (cols,), or null. One thread a column.
template <class T, class W>
__global__ void norm_backward_columns(const T* gradient, const T* x, const float* statistics, W* dweight, W* dshift, int rows, int cols,
                                      long long gradient_stride, long long gradient_step, long long x_stride, long long x_step) {
    const int col = blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= cols) return;
    float weight_sum = 0.0f, shift_sum = 0.0f;
    for (long long begin = 0; begin < rows; begin += 1024) {  // sums of sums: in a single one of 100000 rows the late ones lose their last digits
        float weight_part = 0.0f, shift_part = 0.0f;
        for (long long row = begin; row < min(begin + 1024, static_cast<long long>(rows)); ++row) {
            const float g = to_float(gradient[row * gradient_stride + col * gradient_step]);
            weight_part += g * (to_float(x[row * x_stride + col * x_step]) - statistics[2 * row]) * statistics[2 * row + 1];
            shift_part += g;
        }
        weight_sum += weight_part;
        shift_sum += shift_part;
    }
    if (dweight != nullptr) dweight[col] = from_float<W>(weight_sum);
    if (dshift != nullptr) dshift[col] = from_float<W>(shift_sum);
}
