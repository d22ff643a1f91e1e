// Scaled matmul, v1: naive. One thread for each element of the result, which walks along a row of a and down a column of b.
//   Idea      An 8-bit float is a number like another once it is widened; the scales are common to all terms of a sum, and multiply it at
//             the end.
//   Predicts  2 bytes for each multiply-add, a quarter of what v1 of matmul asks for in float32; neighbours in a warp walk down columns
//             that lie k bytes apart, a sector of 32 bytes each for every byte, and it stays in L1 until the other 31 have been used.
//   Measured  data/measured/h200/scaled_matmul.csv: 34.7 ms at 2048^3.
//   Wastes    A conversion for each factor, and every load serves one multiplication.
#include <cuda_fp8.h>

#include "convert.cuh"

// c (m, n), contiguous; rows of a are a_stride elements apart, columns of b b_stride. Scales and bias (or null): one a row, or a column;
// a step of 0 instead of 1 where one scale is for the whole matrix. Launch with one thread an element: x is the column, y the row.
template <class Out>
__global__ void scaled_matmul_naive(const __nv_fp8_e4m3* a, const __nv_fp8_e4m3* b, Out* c, int m, int n, int k, long long a_stride,
                                    long long b_stride, const float* scale_a, const float* scale_b, int step_a, int step_b,
                                    const Out* bias) {
    const int col = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= m || col >= n) return;
    a += row * a_stride;
    b += col * b_stride;

    float sum = 0.0f;
    for (int i = 0; i < k; ++i) sum += static_cast<float>(a[i]) * static_cast<float>(b[i]);
    sum *= scale_a[row * step_a] * scale_b[col * step_b];
    if (bias != nullptr) sum += to_float(bias[col]);
    c[row * (long long)n + col] = from_float<Out>(sum);
}
