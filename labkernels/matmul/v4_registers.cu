// Matmul, v4: register tiles. A block of 256 threads owns 128 x 128 elements of the result, and each thread 8 x 8 of them.
//   Idea      What shared memory was for global memory, registers are for shared memory: 8 numbers of a and 8 of b, once loaded, give
//             64 multiply-adds.
//   Predicts  0.25 loads from shared memory for an FMA, not 1.25 (v3): an SM's shared memory serves a warp's load each cycle, its
//             FMA units 4 warps; 16 loads and 64 FMAs a thread now take 16 cycles each. And the tile of 128 asks global memory for
//             2 * m * n * k * 4 / 128 bytes: 4.3 GB at 4096^3.
//   Measured  data/measured/h200/matmul.csv: 16.6 -> 3.98 ms at 4096^3 in float32, 67% of the limit; at 512^3 0.036 -> 0.074, for 16 tiles
//             leave most of the GPU idle.
//   Wastes    Of 1797 instructions a slice 1024 are FMAs (sm_90): each load is of one word, and most of the rest works out where it lies.
//             The block waits for its tile, then multiplies, and never does both. A result smaller than 128 x 128 leaves threads
//             with nothing to do.
#include "epilogue.cuh"

constexpr int TILE = 128, DEPTH = 16;  // a block's share of the result, and how much of k comes at a time
constexpr int SIDE = 16;               // the block is SIDE x SIDE threads
constexpr int PATCH = TILE / SIDE;     // a thread owns rows y, y + 16, ... y + 112 of the tile, and such columns

// c = activation(a b + bias) + residual; c (m, n) is contiguous, b is taken by both of its strides, one of which should be 1.
// Launch blocks of SIDE * SIDE threads, and a grid of (ceil(n / TILE), ceil(m / TILE)). Outside of a and b there are zeros.
template <class T, int ACTIVATION>
__global__ void __launch_bounds__(SIDE * SIDE)
matmul_registers(const T* a, const T* b, T* c, int m, int n, int k, long long a_stride, long long b_row_stride, long long b_col_stride,
                 const T* bias, const T* residual, long long residual_stride) {
    __shared__ float a_tile[DEPTH][TILE + 2];  // transposed; 2 words more, and 16 rows by 2 columns are written without conflict
    __shared__ float b_tile[DEPTH][TILE + 2];

    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const int first_row = blockIdx.y * TILE, first_col = blockIdx.x * TILE;
    const bool b_by_rows = b_col_stride == 1;

    float sum[PATCH][PATCH] = {};
    for (int first = 0; first < k; first += DEPTH) {
#pragma unroll
        for (int i = 0; i < PATCH; ++i) {
            const int row = y + SIDE * i;  // of a's tile; x is the column: neighbours read neighbours in memory
            const bool in_a = first_row + row < m && first + x < k;
            a_tile[x][row] = in_a ? to_float(a[(first_row + row) * a_stride + first + x]) : 0.0f;

            const int depth = b_by_rows ? threadIdx.x / TILE + 2 * i : x, col = b_by_rows ? threadIdx.x % TILE : row;
            const bool in_b = first + depth < k && first_col + col < n;
            b_tile[depth][col] = in_b ? to_float(b[(first + depth) * b_row_stride + (first_col + col) * b_col_stride]) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int depth = 0; depth < DEPTH; ++depth) {
            float left[PATCH], right[PATCH];
#pragma unroll
            for (int i = 0; i < PATCH; ++i) left[i] = a_tile[depth][y + SIDE * i], right[i] = b_tile[depth][x + SIDE * i];
#pragma unroll
            for (int i = 0; i < PATCH; ++i) {
#pragma unroll
                for (int j = 0; j < PATCH; ++j) sum[i][j] += left[i] * right[j];
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < PATCH; ++i) {
        const int row = first_row + y + SIDE * i;
#pragma unroll
        for (int j = 0; j < PATCH; ++j) {
            const int col = first_col + x + SIDE * j;
            if (row >= m || col >= n) continue;
            const float value = finish<ACTIVATION>(sum[i][j], bias, residual, residual_stride, row, col);
            c[row * (long long)n + col] = from_float<T>(value);
        }
    }
}
