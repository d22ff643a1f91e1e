// Symmetric matmul, v2: tiled. Blocks for the tiles on and above the diagonal alone; a tile is written twice, the second time turned round.
//   Idea      Both operands of a tile are rows of x. 32 x 32 threads bring 32 rows for either, and a number that is read serves 32
//             products. The mirrored tile goes through shared memory, so that its rows, too, are written in one piece.
//   Predicts  32 times fewer bytes from global memory than v1, and T (T + 1) / 2 blocks for T tiles a side where a full product has T^2.
//   Measured  data/measured/h200/symmetric_matmul.csv: 2048 x 2048 in bfloat16 17.5 -> 1.25 ms.
//   Wastes    FFMA in place of tensor cores, and shared memory for each operand of it, as matmul's v3.
#include "convert.cuh"

constexpr int TILE = 32;

// As symmetric_naive; the grid is (tiles on and above the diagonal, 1, batch), a block TILE x TILE threads.
template <class T>
__global__ void __launch_bounds__(TILE * TILE)
    symmetric_tiled(const T* x, const T* c, T* out, int m, int k, long long batch_stride, long long row_stride, float alpha, float beta) {
    __shared__ float above[TILE][TILE + 1], left[TILE][TILE + 1];
    const int lane = threadIdx.x, y = threadIdx.y;
    int column_tile = 0, row_tile = blockIdx.x;  // column by column: 0, then 0 1, then 0 1 2 ...
    while (row_tile > column_tile) row_tile -= ++column_tile;
    const int first_row = row_tile * TILE, first_col = column_tile * TILE;
    const T* const batch = x + blockIdx.z * batch_stride;
    out += static_cast<long long>(blockIdx.z) * m * m;
    if (c != nullptr) c += static_cast<long long>(blockIdx.z) * m * m;

    float sum = 0.0f;
    for (int first = 0; first < k; first += TILE) {
        const int at = first + lane, row = first_row + y, col = first_col + y;
        left[y][lane] = row < m && at < k ? to_float(batch[row * row_stride + at]) : 0.0f;
        above[y][lane] = col < m && at < k ? to_float(batch[col * row_stride + at]) : 0.0f;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < TILE; ++i) sum += left[y][i] * above[lane][i];
        __syncthreads();
    }
    const int row = first_row + y, col = first_col + lane;
    const bool inside = row < m && col < m;
    const long long at = static_cast<long long>(row) * m + col;
    sum = alpha * sum + (inside && c != nullptr ? beta * to_float(c[at]) : 0.0f);
    if (inside) out[at] = from_float<T>(sum);
    if (row_tile == column_tile) return;
    left[y][lane] = sum;
    __syncthreads();
    const int mirrored_row = first_col + y, mirrored_col = first_row + lane;
    if (mirrored_row < m && mirrored_col < m) out[static_cast<long long>(mirrored_row) * m + mirrored_col] = from_float<T>(left[lane][y]);
}
