// Matmul, v3: tiled. A block of 32 x 32 threads brings a tile of a and a tile of b to shared memory, and all of it multiplies with them.
//   Idea      A number read from memory serves 32 multiplications, not one: a row of the tile of a meets 32 columns of that of b.
//   Predicts  2 * m * n * k * 4 / 32 bytes from global memory: at 4096^3 17 GB instead of 550 (v2). b dense by columns is read along its
//             columns, so it is as fast as b dense by rows.
//   Measured  data/measured/h200/matmul.csv: 23.5 -> 16.6 ms at 4096^3 in float32.
//   Wastes    Shared memory has taken over: each multiply-add needs one word of either tile. The compiler fetches those of a 4 at a
//             time, so 1.25 loads for 1 FMA, and the shared memory of an SM serves 32 lanes while 128 could multiply. Nothing is
//             multiplied while the next tile is on its way, unless another block is there to do so.
#include "epilogue.cuh"

constexpr int TILE = 32;

// c = activation(a b + bias) + residual; c (m, n) is contiguous, b is taken by both of its strides, one of which should be 1.
// Launch blocks of (TILE, TILE) threads: x is the column, y the row. Outside of a and b there are zeros.
template <class T, int ACTIVATION>
__global__ void __launch_bounds__(TILE * TILE)
matmul_tiled(const T* a, const T* b, T* c, int m, int n, int k, long long a_stride, long long b_row_stride, long long b_col_stride,
             const T* bias, const T* residual, long long residual_stride) {
    __shared__ float a_tile[TILE][TILE];
    __shared__ float b_tile[TILE][TILE + 1];  // with a word more, a column too lies in 32 banks

    const int x = threadIdx.x, y = threadIdx.y;
    const int row = blockIdx.y * TILE + y, col = blockIdx.x * TILE + x;
    // Which element of b's tile this thread brings: neighbours bring neighbours in memory.
    const int b_row = b_col_stride == 1 ? y : x, b_col = b_col_stride == 1 ? x : y;
    const int first_col = blockIdx.x * TILE;

    float sum = 0.0f;
    for (int first = 0; first < k; first += TILE) {
        const bool in_a = row < m && first + x < k, in_b = first + b_row < k && first_col + b_col < n;
        a_tile[y][x] = in_a ? to_float(a[row * a_stride + first + x]) : 0.0f;
        b_tile[b_row][b_col] = in_b ? to_float(b[(first + b_row) * b_row_stride + (first_col + b_col) * b_col_stride]) : 0.0f;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < TILE; ++i) sum += a_tile[y][i] * b_tile[i][x];
        __syncthreads();
    }

    if (row >= m || col >= n) return;
    sum = finish<ACTIVATION>(sum, bias, residual, residual_stride, row, col);
    c[row * (long long)n + col] = from_float<T>(sum);
}
