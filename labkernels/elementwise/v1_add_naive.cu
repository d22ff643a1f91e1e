// Residual addition, v1: naive. y = x + residual (+ bias, one a column); one thread adds one element.
//   Idea      The formula. One addition for 3 elements moved: nothing but bytes counts.
//   Predicts  Coalesced, but 2 bytes a lane in 16 bits: far from a copy's bandwidth.
//   Measured  data/measured/h200/residual_add.csv: 16384 x 4096 in bfloat16 in 257 us, 37% of the limit.
//   Wastes    7 of 8 load and store instructions; a division of 64 bits an element.
#include "convert.cuh"

// y = x + residual + bias. x and residual (rows, cols) with any strides; bias (cols,) or null; y (rows, cols) contiguous.
template <class T>
__global__ void add_naive(const T* x, const T* residual, const T* bias, T* y, long long rows, int cols, long long x_row, long long x_col,
                          long long residual_row, long long residual_col) {
    const long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= rows * cols) return;
    const long long row = index / cols, col = index % cols;
    const float sum = to_float(x[row * x_row + col * x_col]) + to_float(residual[row * residual_row + col * residual_col]);
    y[index] = from_float<T>(bias ? sum + to_float(bias[col]) : sum);
}
