// Norms, v4: packed. v2 with so few registers that a multiprocessor is full of threads, and each row is soon done with.
//   Idea      v2's 16 elements take 16 registers as floats, and 16 more go to the weight: half as many threads fit as could. Here a
//             row waits for its sum as it came, two 16-bit elements a register, and is made float32 twice; the weight waits the same
//             way. 40 registers: 1536 threads on a multiprocessor, six rows of 4096.
//   Predicts  The bytes of v2. More rows on their way than v2 has, and no order that is fixed beforehand as in v3: whichever multiprocessor
//             is done gets the next row, and the rows on their way lie close together in memory.
//   Measured  data/measured/h200/rms_norm.csv: 71.0 -> 65.7 us for 16384 rows of 4096 in bfloat16, 97% of the limit; 16 rows 3.2 -> 1.8, launched
//             early (programmatic dependent launch), so that its blocks are there when the kernel before ends. layer_norm.csv: 74.4 -> 69.0.
//             rms_norm_quantized.csv: no gain from 4096 columns on, of 8192 in float8 103 -> 113. Tried, and not faster: weights loaded when they
//             are wanted, the row read a second time from L1, a warp a row, loads and stores that are first to leave L2.
//   Wastes    A block's launch and its last store, which a copy has too; and the weight comes from L1 once a row.
#include "fence.cuh"
#include "norm.cuh"

// As norm_registers (v2), of rows that 16 bytes at a time can be read from; WIDTH elements are 16 bytes of x.
template <int KIND, bool ADD, class T, class W, class OUT, int THREADS, int VECTORS, int WIDTH, int BLOCKS>
__global__ void __launch_bounds__(THREADS == 32 ? 128 : THREADS, BLOCKS)
norm_packed(const T* x, const T* residual, const T* bias, const W* weight, const W* shift, OUT* y, T* sum, float* scale, int rows,
            int cols, long long x_stride, long long residual_stride, float eps) {
    constexpr bool LAYER = static_cast<Norm>(KIND) == Norm::kLayer, NARROW = LARGEST<OUT> > 0.0f;
    __shared__ float meeting[2][2 * THREADS / 32];
    const long long row = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / THREADS;
    if (row >= rows) return;
    const int first = threadIdx.x % THREADS * WIDTH;
    grid_dependency_wait();  // launched early: all before this line is done while the kernel before ends
    grid_dependency_launch();
    const auto inside = [&](int k) { return first + k * THREADS * WIDTH < cols; };

    Packed<T, WIDTH> value[VECTORS];
    load_packed<THREADS>(x + row * x_stride, value, cols, first, 0.0f);
    if constexpr (ADD) {
        Packed<T, WIDTH> added[VECTORS], biases[VECTORS];
        load_packed<THREADS>(residual + row * residual_stride, added, cols, first, 0.0f);
        load_packed<THREADS>(bias, biases, cols, first, 0.0f);
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
            for (int j = 0; j < WIDTH; j += 2)
                value[k].set(j, value[k][j] + biases[k][j] + added[k][j], value[k][j + 1] + biases[k][j + 1] + added[k][j + 1]);
            if (inside(k)) *reinterpret_cast<Packed<T, WIDTH>*>(sum + row * cols + first + k * THREADS * WIDTH) = value[k];
        }
    }

    float mean = 0.0f;
    if constexpr (LAYER) {
        mean = row_mean<THREADS>(value, cols, meeting[0]);
        stay_packed(value);
    }
    Packed<W, WIDTH> weights[VECTORS];
    load_packed<THREADS>(weight, weights, cols, first, 1.0f);
    float part[1 + NARROW] = {};
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            const float above = !LAYER || inside(k) ? value[k][j] - mean : 0.0f;
            part[0] += above * above;
            if constexpr (NARROW) part[1] = fmaxf(part[1], fabsf(value[k][j] * weights[k][j]));
        }
    }
    row_sums<THREADS, NARROW>(part, meeting[1]);
    stay_packed(value);
    float factor = rsqrtf(part[0] / cols + eps);
    if constexpr (NARROW) {
        if (first == 0) scale[row] = factor * part[1] / LARGEST<OUT>;
        factor = part[1] > 0.0f ? LARGEST<OUT> / part[1] : 0.0f;
    }
    Packed<W, WIDTH> shifts[VECTORS];
    if constexpr (LAYER) load_packed<THREADS>(shift, shifts, cols, first, 0.0f);
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        float result[WIDTH];
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            result[j] = (value[k][j] - mean) * factor * weights[k][j];
            if constexpr (LAYER) result[j] += shifts[k][j];
        }
        if (inside(k)) store_vector(y + row * cols + first + k * THREADS * WIDTH, result);
    }
}
