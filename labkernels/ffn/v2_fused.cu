// FFN, v2: fused. Two kernels: the first product activates its sums before it writes them, so only h goes through memory.
//   Idea      A sum is in a register when it is complete, and that is where to apply the activation. For SwiGLU a thread keeps the sum of a gate
//             and that of the up that belongs to it: x, once read, serves both. The product is tiled in shared memory and in registers.
//   Predicts  pre, (tokens, ffn) or (tokens, 2 ffn), is neither written nor read: 0.36 GB less in float32 at 4096 x 11008 (SwiGLU 0.72 GB), 80
//             us of H200's memory. Beside 14 ms of float32 arithmetic that is nothing; the tile is what counts here, and on tensor
//             cores (v3, v4), where the arithmetic takes 1 ms, the epilogue counts too.
//   Measured  data/measured/h200/ffn.csv: 187 -> 4.68 ms for 512 tokens, GELU in float32, 38% of the limit (PyTorch 1.85). A tile is 64 tokens:
//             for one token of SwiGLU in bfloat16 1.06 -> 2.21.
//   Wastes    Tensor cores.
#include "activation.cuh"

constexpr int TILE = 64, DEPTH = 16, SIDE = 16;  // a block of SIDE x SIDE threads owns TILE x TILE results, DEPTH of k at a time
constexpr int PATCH = TILE / SIDE;               // a thread owns rows y, y + 16, ... and such columns

// Reads `TILE` rows of a matrix, from `first` on, DEPTH elements of each from `column` on, transposed into shared memory; zeros outside.
template <class T>
__device__ __forceinline__ void load_tile(float (&tile)[DEPTH][TILE + 1], const T* matrix, int first, int rows, int column, int columns,
                                          long long stride) {
    const int thread = threadIdx.y * SIDE + threadIdx.x, at = thread % DEPTH;
#pragma unroll
    for (int i = 0; i < TILE * DEPTH / (SIDE * SIDE); ++i) {
        const int row = thread / DEPTH + i * (SIDE * SIDE / DEPTH);
        const bool inside = first + row < rows && column + at < columns;
        tile[at][row] = inside ? to_float(matrix[(first + row) * stride + column + at]) : 0.0f;
    }
}

// y (rows, cols) = act(x w^T + bias); x (rows, k), w (cols, k). ACTIVATION 0: none. Gated: w (2 cols, k), bias (2 cols), gates before ups.
// Launch blocks of (SIDE, SIDE) threads, a grid of (ceil(cols / TILE), ceil(rows / TILE)).
template <class T, int ACTIVATION>
__global__ void __launch_bounds__(SIDE * SIDE)
    ffn_linear_fused(const T* x, const T* w, const T* bias, T* y, int rows, int cols, int k, long long x_stride, long long w_stride) {
    constexpr bool GATED = is_gated(ACTIVATION);
    __shared__ float tokens[DEPTH][TILE + 1], weights[GATED ? 2 : 1][DEPTH][TILE + 1];
    const int first_row = blockIdx.y * TILE, first_col = blockIdx.x * TILE;
    float sums[GATED ? 2 : 1][PATCH][PATCH] = {};
    for (int column = 0; column < k; column += DEPTH) {
        load_tile(tokens, x, first_row, rows, column, k, x_stride);
        load_tile(weights[0], w, first_col, cols, column, k, w_stride);
        if constexpr (GATED) load_tile(weights[1], w + cols * w_stride, first_col, cols, column, k, w_stride);
        __syncthreads();
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            float left[PATCH];
#pragma unroll
            for (int i = 0; i < PATCH; ++i) left[i] = tokens[d][threadIdx.y + SIDE * i];
#pragma unroll
            for (int part = 0; part < (GATED ? 2 : 1); ++part) {
#pragma unroll
                for (int j = 0; j < PATCH; ++j) {
                    const float right = weights[part][d][threadIdx.x + SIDE * j];
#pragma unroll
                    for (int i = 0; i < PATCH; ++i) sums[part][i][j] += left[i] * right;
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < PATCH; ++i) {
#pragma unroll
        for (int j = 0; j < PATCH; ++j) {
            const int row = first_row + threadIdx.y + SIDE * i, col = first_col + threadIdx.x + SIDE * j;
            if (row >= rows || col >= cols) continue;
            float sum = sums[0][i][j], up = 1.0f;
            if (bias != nullptr) sum += to_float(bias[col]);
            if constexpr (GATED) up = sums[1][i][j] + (bias == nullptr ? 0.0f : to_float(bias[cols + col]));
            y[row * static_cast<long long>(cols) + col] = from_float<T>(ffn_activate<ACTIVATION, T>(sum, up));
        }
    }
}
