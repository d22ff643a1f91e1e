// Matmul, v1: naive. One thread for each element of the result, which walks along a row of a and down a column of b.
//   Idea      c[row][col] = sum over i of a[row][i] * b[i][col], as the formula is written, row and col as x and y number the threads.
//   Predicts  2 loads for each multiply-add, 2 * m * n * k * 4 bytes asked for: at 4096^3 550 GB, where 0.2 GB would do. Neighbours
//             in a warp differ in their row: a load of a touches 32 rows, 32 sectors of 32 bytes, and uses 4 bytes of each.
//   Measured  data/measured/h200/matmul.csv: 276 ms at 4096^3 in float32, 1% of the limit.
//   Wastes    That order of the threads: 28 of 32 bytes that a load of a or a store of c touches. Then the loads themselves: a number
//             that comes in serves one multiplication.
#include "epilogue.cuh"

// c = activation(a b + bias) + residual; c (m, n) is contiguous, b is taken by both of its strides. Launch with one thread an
// element: x is the row, y the column.
template <class T, int ACTIVATION>
__global__ void matmul_naive(const T* a, const T* b, T* c, int m, int n, int k, long long a_stride, long long b_row_stride,
                             long long b_col_stride, const T* bias, const T* residual, long long residual_stride) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    const int col = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= m || col >= n) return;
    a += row * a_stride;
    b += col * b_col_stride;

    float sum = 0.0f;
    for (int i = 0; i < k; ++i) sum += to_float(a[i]) * to_float(b[i * b_row_stride]);
    sum = finish<ACTIVATION>(sum, bias, residual, residual_stride, row, col);
    c[row * (long long)n + col] = from_float<T>(sum);
}
