// Matmul, v2: coalesced. The kernel of v1 with x and y exchanged: neighbours in a warp share a row of a and read neighbours of b.
//   Idea      What a warp asks for at once should lie in one piece. Its 32 threads now differ in their column: a load of a is one
//             word for all of them, a load of b and a store of c are 128 bytes in a row.
//   Predicts  The same 2 loads for each multiply-add as v1, but 1 + 4 sectors a pair of loads instead of 32 + 1, and 4 a store
//             instead of 32: 6.6 times fewer sectors.
//   Measured  data/measured/h200/matmul.csv: 276 -> 23.5 ms at 4096^3 in float32; at 512^3, where L2 holds everything, 0.561 -> 0.048.
//   Wastes    Every number comes through the load unit once for each multiplication: 2 loads for 1 FMA, where an SM has 32 lanes
//             that load and 128 that multiply. And b dense by columns (`weight.t()`) puts us back to v1.
#include "epilogue.cuh"

// c = activation(a b + bias) + residual; c (m, n) is contiguous, b is taken by both of its strides. Launch with one thread an
// element: x is the column, y the row.
template <class T, int ACTIVATION>
__global__ void matmul_coalesced(const T* a, const T* b, T* c, int m, int n, int k, long long a_stride, long long b_row_stride,
                                 long long b_col_stride, const T* bias, const T* residual, long long residual_stride) {
    const int row = blockIdx.y * blockDim.y + threadIdx.y;
    const int col = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= m || col >= n) return;
    a += row * a_stride;
    b += col * b_col_stride;

    float sum = 0.0f;
    for (int i = 0; i < k; ++i) sum += to_float(a[i]) * to_float(b[i * b_row_stride]);
    sum = finish<ACTIVATION>(sum, bias, residual, residual_stride, row, col);
    c[row * (long long)n + col] = from_float<T>(sum);
}
