// Norms backward, v3: a ring of rows. As v2, with the rows of the next rounds on their way while this one is worked on.
//   Idea      The registers of v2 go into sums, and leave few threads to ask for memory. So the bulk copy engine asks (Hopper's TMA): rows
//             of x and of the gradient come into a ring of shared memory, 100 KB and more of them at a time on each multiprocessor.
//   Predicts  The bytes of v2 at the speed of a copy, whatever the threads do between.
//   Measured  data/measured/h200/rms_norm_backward.csv, layer_norm_backward.csv.
//   Wastes    The second kernel's few microseconds, and the first rows' latency.
#include "tma.cuh"
#include "backward_sum.cuh"
#include "norm.cuh"

// As norm_backward_registers, with a block of THREADS threads a row, and ADD where `added` is not null. Rows must lie on multiples of 16
// bytes and be a multiple of 16 bytes long; dynamic shared memory: STAGES rows of x, of the gradient, and of `added`.
template <int KIND, bool ADD, class T, class W, int THREADS, int VECTORS, int WIDTH, int STAGES, int BLOCKS>
__global__ void __launch_bounds__(THREADS, BLOCKS)
norm_backward_ring(const T* gradient, const T* x, const W* weight, const T* added, T* dx, float* partial, int rows, int cols,
                   long long gradient_stride, long long x_stride, float eps) {
    constexpr bool LAYER = static_cast<Norm>(KIND) == Norm::kLayer;
    extern __shared__ __align__(128) unsigned char ring[];
    __shared__ Mbarrier full[STAGES];
    __shared__ float meeting[2][3 * THREADS / 32];
    const int first = threadIdx.x * WIDTH, row_bytes = cols * static_cast<int>(sizeof(T));
    T* const rows_of_x = reinterpret_cast<T*>(ring);
    T* const rows_of_gradient = rows_of_x + STAGES * cols;
    T* const rows_added = rows_of_gradient + STAGES * cols;

    const auto fetch = [&](int stage, long long row) {
        mbarrier_arrive_expect_tx(&full[stage], (2 + ADD) * row_bytes);
        bulk_load(rows_of_x + stage * cols, x + row * x_stride, row_bytes, &full[stage]);
        bulk_load(rows_of_gradient + stage * cols, gradient + row * gradient_stride, row_bytes, &full[stage]);
        if constexpr (ADD) bulk_load(rows_added + stage * cols, added + row * cols, row_bytes, &full[stage]);
    };
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) mbarrier_init(&full[stage], 1);
        fence_mbarrier_init();
        for (int stage = 0; stage < STAGES; ++stage) {
            const long long row = blockIdx.x + stage * static_cast<long long>(gridDim.x);
            if (row < rows) fetch(stage, row);
        }
    }
    Vector<W, WIDTH> weights[VECTORS];
    load_share<THREADS>(weight, weights, cols, first, 1.0f);
    float dweight[VECTORS][WIDTH] = {}, dshift[LAYER ? VECTORS : 1][WIDTH] = {};
    __syncthreads();

    int stage = 0, parity = 0, turn = 0;
    for (long long row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
        mbarrier_wait(&full[stage], parity);
        Vector<T, WIDTH> share[VECTORS], gradients[VECTORS], more[VECTORS];
        load_share<THREADS>(rows_of_x + stage * cols, share, cols, first, 0.0f);
        load_share<THREADS>(rows_of_gradient + stage * cols, gradients, cols, first, 0.0f);
        load_share<THREADS>(ADD ? rows_added + stage * cols : nullptr, more, cols, first, 0.0f);
        float value[VECTORS][WIDTH], upstream[VECTORS][WIDTH];
        widen(share, value);
        widen(gradients, upstream);
        row_gradient<KIND, THREADS>(value, upstream, weights, dweight, dshift, cols, first, eps, meeting[0], meeting[LAYER ? 1 : turn], [&] {
            const long long next = row + STAGES * static_cast<long long>(gridDim.x);
            if (threadIdx.x == 0 && next < rows) fetch(stage, next);  // all have read this stage
        });
        write_gradient<THREADS>(value, more, dx + row * cols, cols, first);
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    if (partial == nullptr) return;
    write_partial<THREADS>(dweight, partial + blockIdx.x * static_cast<long long>(cols), cols, first);
    if constexpr (LAYER) write_partial<THREADS>(dshift, partial + (gridDim.x + blockIdx.x) * static_cast<long long>(cols), cols, first);
}
