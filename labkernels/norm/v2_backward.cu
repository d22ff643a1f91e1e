// Norms backward, v2: one pass. A row of x and of the gradient is read once; what it adds to dweight stays in the threads' registers.
//   Idea      A block stays and walks over many rows, always the same thread on the same columns: each keeps the sums of its columns in
//             registers, so that dweight costs no read of its own. At the end a block writes one row of partial sums, and a second,
//             small kernel adds these up in a fixed order: no atomics, the same bits each time. 1 / standard deviation is worked out
//             again, from what has been read anyway.
//   Predicts  2 reads and 1 write an element; partial sums of some hundred blocks are a few megabytes, in L2.
//   Measured  data/measured/h200/rms_norm_backward.csv: 7.07 ms -> 127 us for 16384 rows of 4096 in bfloat16, 75% of the limit (torch.compile
//             139); layer_norm_backward.csv: 7.12 ms -> 146 us, 65%.
//   Wastes    Between its loads and its stores a block meets, and meanwhile asks for nothing; the registers for the sums leave room for
//             few blocks.
#include "backward_sum.cuh"
#include "block.cuh"
#include "norm.cuh"

// dx (rows, cols), contiguous, from the gradient of the result and x, rows some elements apart; `added` (rows, cols), contiguous, or null
// is added to dx. partial: (gridDim.x * blockDim.x / THREADS, cols) sums for dweight, and as many for dshift of kLayer; or null.
// THREADS threads own a row: 32, or the whole block. cols must be a multiple of WIDTH, at most THREADS * VECTORS * WIDTH.
template <int KIND, class T, class W, int THREADS, int VECTORS, int WIDTH>
__global__ void __launch_bounds__(THREADS < 128 ? 128 : THREADS)
norm_backward_registers(const T* gradient, const T* x, const W* weight, const T* added, T* dx, float* partial, int rows, int cols,
                        long long gradient_stride, long long x_stride, float eps) {
    constexpr bool LAYER = static_cast<Norm>(KIND) == Norm::kLayer;
    __shared__ float meeting[2][3 * THREADS / 32];
    const int first = threadIdx.x % THREADS * WIDTH;
    const long long owner = (blockIdx.x * blockDim.x + threadIdx.x) / THREADS, owners = gridDim.x * blockDim.x / THREADS;
    Packed<W, WIDTH> weights[VECTORS];
    load_packed<THREADS>(weight, weights, cols, first, 1.0f);
    float dweight[VECTORS][WIDTH] = {}, dshift[LAYER ? VECTORS : 1][WIDTH] = {};

    int turn = 0;
    for (long long row = owner; row < rows; row += owners, turn ^= 1) {
        Packed<T, WIDTH> share[VECTORS], gradients[VECTORS], more[VECTORS];
        load_packed<THREADS>(x + row * x_stride, share, cols, first, 0.0f);
        load_packed<THREADS>(gradient + row * gradient_stride, gradients, cols, first, 0.0f);
        load_packed<THREADS>(added != nullptr ? added + row * cols : nullptr, more, cols, first, 0.0f);
        write_gradient<KIND, THREADS, 1>(share, gradients, more, weights, dweight, dshift, dx + row * cols, cols, first, eps, meeting[0],
                                      meeting[LAYER ? 1 : turn], [] {});
    }
    if (partial == nullptr) return;
    write_partial<THREADS>(dweight, partial + owner * cols, cols, first);
    if constexpr (LAYER) write_partial<THREADS>(dshift, partial + (owners + owner) * cols, cols, first);
}

// The same for rows too long for a block's registers, in two kernels as in v1: one block a row for dx, which reads the row twice (of kLayer
// three times) and leaves mean and 1 / standard deviation in `statistics` (rows, 2) ...
template <int KIND, class T, class W, int WIDTH>
__global__ void norm_backward_streamed(const T* gradient, const T* x, const W* weight, const T* added, T* dx, float* statistics, int cols,
                                       long long gradient_stride, long long x_stride, float eps) {
    constexpr bool LAYER = static_cast<Norm>(KIND) == Norm::kLayer;
    const long long row = blockIdx.x;
    const int first = threadIdx.x * WIDTH, step = blockDim.x * WIDTH;
    gradient += row * gradient_stride;
    x += row * x_stride;

    float mean = 0.0f;
    if constexpr (LAYER) {
#pragma unroll 4
        for (int col = first; col < cols; col += step) {
            float value[WIDTH];
            load_vector(x + col, value);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) mean += value[j];
        }
        mean = block_sum(mean) / cols;
    }
    const auto weighted = [&](int col, float (&g)[WIDTH]) {
        load_vector(gradient + col, g);
        if (weight == nullptr) return;
        float factor[WIDTH];
        load_vector(weight + col, factor);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) g[j] *= factor[j];
    };
    float squares = 0.0f, along = 0.0f, sum = 0.0f;
#pragma unroll 2
    for (int col = first; col < cols; col += step) {
        float value[WIDTH], g[WIDTH];
        load_vector(x + col, value);
        weighted(col, g);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            squares += (value[j] - mean) * (value[j] - mean);
            along += g[j] * (value[j] - mean);
            sum += g[j];
        }
    }
    const float rstd = rsqrtf(block_sum(squares) / cols + eps);
    along = block_sum(along) / cols * rstd * rstd;
    sum = LAYER ? block_sum(sum) / cols : 0.0f;
#pragma unroll 2
    for (int col = first; col < cols; col += step) {
        float value[WIDTH], g[WIDTH], more[WIDTH] = {};
        load_vector(x + col, value);
        weighted(col, g);
        if (added != nullptr) load_vector(added + row * cols + col, more);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[j] = rstd * (g[j] - sum - (value[j] - mean) * along) + more[j];
        store_vector(dx + row * cols + col, value);
    }
    if (threadIdx.x == 0) statistics[2 * row] = mean, statistics[2 * row + 1] = rstd;
}

// ... and one thread a column and chunk of rows for the partial sums: blockIdx.y is the chunk. partial: (gridDim.y, cols), twice if `both`.
template <class T>
__global__ void norm_backward_chunks(const T* gradient, const T* x, const float* statistics, float* partial, bool both, int rows, int cols,
                                     int chunk_rows, long long gradient_stride, long long x_stride) {
    const int col = blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= cols) return;
    const long long first = blockIdx.y * static_cast<long long>(chunk_rows), end = min(static_cast<long long>(rows), first + chunk_rows);
    float weight_sum = 0.0f, shift_sum = 0.0f;
#pragma unroll 4
    for (long long row = first; row < end; ++row) {
        const float g = to_float(gradient[row * gradient_stride + col]);
        weight_sum += g * (to_float(x[row * x_stride + col]) - statistics[2 * row]) * statistics[2 * row + 1];
        shift_sum += g;
    }
    partial[blockIdx.y * static_cast<long long>(cols) + col] = weight_sum;
    if (both) partial[(gridDim.y + blockIdx.y) * static_cast<long long>(cols) + col] = shift_sum;
}
