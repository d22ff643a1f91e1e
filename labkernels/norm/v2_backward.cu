// Norms backward, v2: one pass. A row of x and of the gradient is read once; what it adds to dweight stays in the threads' registers.
//   Idea      A block stays and walks over many rows, always the same thread on the same columns: each keeps the sums of its columns in
//             registers, so that dweight costs no read of its own. At the end a block writes one row of partial sums, and a second,
//             small kernel adds these up in a fixed order: no atomics, the same bits each time. 1 / standard deviation is worked out
//             again, from what has been read anyway.
//   Predicts  2 reads and 1 write an element; partial sums of some hundred blocks are a few megabytes, in L2.
//   Measured  data/measured/h200/rms_norm_backward.csv, layer_norm_backward.csv.
//   Wastes    Between its loads and its stores a block meets, and meanwhile asks for nothing; the registers for the sums leave room for
//             few blocks.
#include "backward_sum.cuh"
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
