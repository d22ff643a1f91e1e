// Norms, v1: naive. One warp owns a row and walks over it once for each thing it must know: the mean, the sum of squares, the result.
//   Idea      Nothing of a row can be written before all of it has been read; so it is read, and read again.
//   Predicts  For RMSNorm 2 reads and 1 write an element, for LayerNorm 3 and 1: 1.5 or 2 times the bytes that must move, unless a cache
//             still holds the row. With a residual: the sum is written, and read back.
//   Measured  data/measured/h200/rms_norm.csv: 182 us for 16384 rows of 4096 in bfloat16, 35% of the limit; layer_norm.csv: 217, 29%.
//   Wastes    All reads but the first; 2 bytes a load where 16 are possible; one warp for a row however long it is.
#include "norm.cuh"

// As norm_registers (v2), for rows whose elements may lie apart.
template <int KIND, bool ADD, class T, class W, class OUT>
__global__ void norm_naive(const T* x, const T* residual, const T* bias, const W* weight, const W* shift, OUT* y, T* sum, float* scale,
                           int rows, int cols, long long x_stride, long long x_step, long long residual_stride, long long residual_step,
                           float eps) {
    constexpr bool NARROW = LARGEST<OUT> > 0.0f;
    const long long row = blockIdx.x * (blockDim.x / 32LL) + warp_id();
    if (row >= rows) return;
    x += row * x_stride;
    y += row * cols;

    if constexpr (ADD) {
        residual += row * residual_stride;
        sum += row * cols;
        for (int col = lane_id(); col < cols; col += 32) {
            const float added = bias != nullptr ? to_float(bias[col]) : 0.0f;
            sum[col] = from_float<T>(to_float(x[col * x_step]) + added + to_float(residual[col * residual_step]));
        }
        x = sum;  // each lane reads what it has written itself
        x_step = 1;
    }
    float mean = 0.0f;
    if constexpr (static_cast<Norm>(KIND) == Norm::kLayer) {
        for (int col = lane_id(); col < cols; col += 32) mean += to_float(x[col * x_step]);
        mean = warp_sum(mean) / cols;
    }
    float squares = 0.0f, largest = 0.0f;
    for (int col = lane_id(); col < cols; col += 32) {
        const float value = to_float(x[col * x_step]) - mean;
        squares += value * value;
        if (NARROW) largest = fmaxf(largest, fabsf(weight != nullptr ? value * to_float(weight[col]) : value));
    }
    float factor = rsqrtf(warp_sum(squares) / cols + eps);
    if constexpr (NARROW) {
        largest = warp_max(largest);
        if (lane_id() == 0) scale[row] = factor * largest / LARGEST<OUT>;
        factor = largest > 0.0f ? LARGEST<OUT> / largest : 0.0f;
    }
    for (int col = lane_id(); col < cols; col += 32) {
        const float value = (to_float(x[col * x_step]) - mean) * (weight != nullptr ? to_float(weight[col]) : 1.0f) * factor;
        y[col] = from_float<OUT>(shift != nullptr ? value + to_float(shift[col]) : value);
    }
}
