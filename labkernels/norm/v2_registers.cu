// Norms, v2: in registers. The row is read once, 16 bytes at a time, and stays on the chip until the result is written.
//   Idea      16 elements a thread: a warp holds a row of 512, a block of 1024 threads one of 16384. What is in registers needs no second
//             read; a mean, the sum of squares and the result, all on the spot. A residual is added on the way in and written on the
//             way; a narrow result finds its scale in the same sum.
//   Predicts  1 read and 1 write an element, nothing can move less: the time of a copy.
//   Measured  data/measured/h200/rms_norm.csv: 182 -> 72.0 us for 16384 rows of 4096 in bfloat16, 88% of the limit; 16 rows 52.7 -> 3.3.
//             layer_norm.csv: 217 -> 90.0, 71%.
//   Wastes    A block reads, then meets, then writes: only other blocks on the same multiprocessor keep the memory busy meanwhile. Each
//             reads the weight again. Rows too long for registers are read twice (norm_streamed).
#include "block.cuh"
#include "norm.cuh"

// y = norm of each row of x, or of x + residual + bias, which is written to `sum`, for a template with ADD. x and residual: (rows, cols),
// rows some elements apart; y and sum: (rows, cols), contiguous; scale: (rows,), for a narrow OUT. weight, shift, bias: (cols,) or null.
// THREADS threads own a row (32: a warp; more: a whole block). cols must be a multiple of WIDTH, at most THREADS * VECTORS * WIDTH.
template <int KIND, bool ADD, class T, class W, class OUT, int THREADS, int VECTORS, int WIDTH>
__global__ void __launch_bounds__(THREADS < 128 ? 128 : THREADS)
norm_registers(const T* x, const T* residual, const T* bias, const W* weight, const W* shift, OUT* y, T* sum, float* scale, int rows,
               int cols, long long x_stride, long long residual_stride, float eps) {
    constexpr bool LAYER = static_cast<Norm>(KIND) == Norm::kLayer;
    __shared__ float meeting[2][2 * THREADS / 32];
    const long long row = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / THREADS;
    if (row >= rows) return;
    const int first = threadIdx.x % THREADS * WIDTH;

    Vector<T, WIDTH> share[VECTORS];
    Vector<W, WIDTH> weights[VECTORS], shifts[VECTORS];
    load_share<THREADS>(x + row * x_stride, share, cols, first, 0.0f);
    if constexpr (ADD) {
        Vector<T, WIDTH> added[VECTORS], biases[VECTORS];
        load_share<THREADS>(residual + row * residual_stride, added, cols, first, 0.0f);
        load_share<THREADS>(bias, biases, cols, first, 0.0f);
        add_residual<THREADS>(share, added, biases, sum + row * cols, cols, first);
    }
    load_share<THREADS>(weight, weights, cols, first, 1.0f);
    if constexpr (LAYER) load_share<THREADS>(shift, shifts, cols, first, 0.0f);
    float value[VECTORS][WIDTH];
    widen(share, value);
    if constexpr (LAYER) subtract_mean<THREADS>(value, cols, first, meeting[0]);
    write_normalised<KIND, THREADS>(value, weights, shifts, y + row * cols, scale + row, cols, first, eps, meeting[1], [] {});
}

// The same for rows too long for registers: one block a row, which is read twice, of kLayer three times. Any THREADS will do; with a
// residual, the threads read again what they themselves have written to `sum`.
template <int KIND, bool ADD, class T, class W, class OUT, int WIDTH>
__global__ void norm_streamed(const T* x, const T* residual, const T* bias, const W* weight, const W* shift, OUT* y, T* sum, float* scale,
                              int rows, int cols, long long x_stride, long long residual_stride, float eps) {
    constexpr bool NARROW = LARGEST<OUT> > 0.0f;
    const long long row = blockIdx.x;
    const int first = threadIdx.x * WIDTH, step = blockDim.x * WIDTH;
    x += row * x_stride;
    y += row * cols;

    if constexpr (ADD) {
        residual += row * residual_stride;
        sum += row * cols;
        for (int col = first; col < cols; col += step) {
            float value[WIDTH], added[WIDTH], biases[WIDTH] = {};
            load_vector(x + col, value);
            load_vector(residual + col, added);
            if (bias != nullptr) load_vector(bias + col, biases);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) value[j] = value[j] + biases[j] + added[j];
            store_vector(sum + col, value);
        }
        x = sum;
    }
    float mean = 0.0f;
    if constexpr (static_cast<Norm>(KIND) == Norm::kLayer) {
#pragma unroll 4
        for (int col = first; col < cols; col += step) {
            float value[WIDTH];
            load_vector(x + col, value);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) mean += value[j];
        }
        mean = block_sum(mean) / cols;
    }
    float squares = 0.0f, largest = 0.0f;
#pragma unroll 4
    for (int col = first; col < cols; col += step) {
        float value[WIDTH], weights[WIDTH];
        load_vector(x + col, value);
        if (NARROW && weight != nullptr) load_vector(weight + col, weights);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            squares += (value[j] - mean) * (value[j] - mean);
            if (NARROW) largest = fmaxf(largest, fabsf(weight != nullptr ? value[j] * weights[j] : value[j]));
        }
    }
    float factor = rsqrtf(block_sum(squares) / cols + eps);
    if constexpr (NARROW) {
        largest = block_max(largest);
        if (threadIdx.x == 0) scale[row] = factor * largest / LARGEST<OUT>;
        factor = largest > 0.0f ? LARGEST<OUT> / largest : 0.0f;
    }
#pragma unroll 4
    for (int col = first; col < cols; col += step) {
        float value[WIDTH], weights[WIDTH], shifts[WIDTH] = {};
        load_vector(x + col, value);
        if (weight != nullptr) load_vector(weight + col, weights);
        if (shift != nullptr) load_vector(shift + col, shifts);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[j] = (value[j] - mean) * (weight != nullptr ? weights[j] : 1.0f) * factor + shifts[j];
        store_vector(y + col, value);
    }
}
