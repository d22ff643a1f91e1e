// Softmax, v3: in registers. The row is read once, 16 bytes at a time, and stays on the chip until the result is written.
//   Idea      A row of up to 1024 elements fits in a warp's registers (32 a lane), one of up to 32768 in those of a block of 1024
//             threads. What is in registers needs no online rescaling: maximum, exp, sum, all on the spot.
//   Predicts  1 read and 1 write an element, nothing can move less: the time of a copy. One exp an element.
//   Measured  data/measured/h200/softmax.csv: float32, 16384 x 4096: v2 0.263 ms -> v3 0.135 ms.
//   Wastes    Longer rows are read twice (softmax_streamed), and one block a row leaves most of the GPU idle if rows are few.
#include <math_constants.h>

#include "block.cuh"
#include "vector.cuh"

// y = softmax of each row of x. x: (rows, cols), rows `row_stride` elements apart; y: (rows, cols), contiguous.
// ROW_THREADS threads own a row (32: a warp; more: a whole block), and each holds VECTORS vectors of WIDTH elements of it.
// cols must be a multiple of WIDTH, at most ROW_THREADS * VECTORS * WIDTH; rows must lie on a multiple of WIDTH elements.
template <class T, int ROW_THREADS, int VECTORS, int WIDTH>
__global__ void __launch_bounds__(ROW_THREADS < 128 ? 128 : ROW_THREADS)
softmax_registers(const T* x, T* y, int rows, int cols, long long row_stride) {
    const long long row = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / ROW_THREADS;
    if (row >= rows) return;
    x += row * row_stride;
    y += row * cols;
    const int first = threadIdx.x % ROW_THREADS * WIDTH;

    float value[VECTORS][WIDTH];
    float max = -CUDART_INF_F;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const int col = first + k * ROW_THREADS * WIDTH;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[k][j] = -CUDART_INF_F;
        if (col < cols) load_vector(x + col, value[k]);
    }
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) max = fmaxf(max, value[k][j]);
    }
    max = ROW_THREADS == 32 ? warp_max(max) : block_max(max);

    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) sum += value[k][j] = __expf(value[k][j] - max);
    }
    sum = ROW_THREADS == 32 ? warp_sum(sum) : block_sum(sum);

    const float factor = 1.0f / sum;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const int col = first + k * ROW_THREADS * WIDTH;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[k][j] *= factor;
        if (col < cols) store_vector(y + col, value[k]);
    }
}

// The same for rows too long for registers: one block a row, the maximum and the sum in one pass as in v2, then a second read.
template <class T, int WIDTH>
__global__ void softmax_streamed(const T* x, T* y, int rows, int cols, long long row_stride) {
    x += blockIdx.x * row_stride;
    y += blockIdx.x * (long long)cols;
    const int first = threadIdx.x * WIDTH, step = blockDim.x * WIDTH;

    float max = -CUDART_INF_F, sum = 0.0f;
#pragma unroll 2
    for (int col = first; col < cols; col += step) {
        float value[WIDTH];
        load_vector(x + col, value);
        float new_max = max;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) new_max = fmaxf(new_max, value[j]);
        const float base = new_max == -CUDART_INF_F ? 0.0f : new_max;
        sum *= __expf(max - base);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) sum += __expf(value[j] - base);
        max = new_max;
    }
    const float row_max = block_max(max);
    const float factor = 1.0f / block_sum(max == -CUDART_INF_F ? sum : sum * __expf(max - row_max));

#pragma unroll 2
    for (int col = first; col < cols; col += step) {
        float value[WIDTH];
        load_vector(x + col, value);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[j] = __expf(value[j] - row_max) * factor;
        store_vector(y + col, value);
    }
}
