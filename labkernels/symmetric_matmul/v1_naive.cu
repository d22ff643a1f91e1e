// Symmetric matmul, v1: naive. One thread for each element on or above the diagonal; it writes both places.
//   Idea      (x x^T)[i][j] and [j][i] are the same sum, so it is worked out once.
//   Predicts  Half of the FMAs of a naive matmul, and of its loads. The threads below the diagonal leave at once, in whole blocks but for
//             those on it.
//   Measured  data/measured/h200/symmetric_matmul.csv: 2048 x 2048 in bfloat16 in 17.5 ms; cuBLAS, which works out both halves, 0.02.
//   Wastes    What every naive matmul does: a number that is read serves one multiplication. And the mirrored store touches 32 rows a warp.
#include "convert.cuh"

// out = alpha x x^T + beta c for each of the batch, which is the grid's z. x (batch, m, k) by its strides; c (may be null) and out (batch,
// m, m).
template <class T>
__global__ void symmetric_naive(const T* x, const T* c, T* out, int m, int k, long long batch_stride, long long row_stride, float alpha, float beta) {
    const int col = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (col >= m || row > col) return;
    const T* const batch = x + blockIdx.z * batch_stride;
    const long long base = static_cast<long long>(blockIdx.z) * m * m, upper = base + static_cast<long long>(row) * m + col;
    float sum = 0.0f;
    for (int i = 0; i < k; ++i) sum += to_float(batch[row * row_stride + i]) * to_float(batch[col * row_stride + i]);
    sum = alpha * sum + (c == nullptr ? 0.0f : beta * to_float(c[upper]));
    out[upper] = out[base + static_cast<long long>(col) * m + row] = from_float<T>(sum);
}
