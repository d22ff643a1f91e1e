// Norms, v3: a ring of rows. Blocks stay, the bulk copy engine brings the rows of the next rounds while this one is worked on.
//   Idea      A block walks over many rows, from one to the next as far on as there are blocks. Rows come into a ring of shared memory
//             by bulk copies that nobody waits for (Hopper's TMA, one instruction a row); the weight stays in registers. The barrier
//             at which the warps meet for the sum also says that all have read the row: its place in the ring is filled again at once.
//   Predicts  The bytes of v2, but reads are always on their way, however long the threads meet and write.
//   Measured  data/measured/h200/rms_norm.csv: 72.0 -> 71.0 us for 16384 rows of 4096 in bfloat16; of 16384 369 -> 273, 93% of the limit.
//             layer_norm.csv: 90.0 -> 74.4 (4096). rms_norm_quantized.csv: 64.4 -> 53.9 in float8.
//   Wastes    The detour through shared memory. Rows are dealt out beforehand, and whoever is late is waited for. More than two stages only
//             spread the reads over more of the memory, and cost time.
#include "tma.cuh"
#include "norm.cuh"

// As norm_registers, with a block of THREADS threads a row. Rows must lie on multiples of 16 bytes and be a multiple of 16 bytes long;
// dynamic shared memory: STAGES rows of x, and as many of residual for a template with ADD.
template <int KIND, bool ADD, class T, class W, class OUT, int THREADS, int VECTORS, int WIDTH, int STAGES, int BLOCKS>
__global__ void __launch_bounds__(THREADS, BLOCKS)
norm_ring(const T* x, const T* residual, const T* bias, const W* weight, const W* shift, OUT* y, T* sum, float* scale, int rows,
          int cols, long long x_stride, long long residual_stride, float eps) {
    constexpr bool LAYER = static_cast<Norm>(KIND) == Norm::kLayer;
    extern __shared__ __align__(128) unsigned char ring[];
    __shared__ Mbarrier full[STAGES];
    __shared__ float meeting[2][2 * THREADS / 32];
    const int first = threadIdx.x * WIDTH, row_bytes = cols * static_cast<int>(sizeof(T));
    T* const rows_of_x = reinterpret_cast<T*>(ring);
    T* const rows_of_residual = rows_of_x + STAGES * cols;

    const auto fetch = [&](int stage, long long row) {
        mbarrier_arrive_expect_tx(&full[stage], (1 + ADD) * row_bytes);
        bulk_load(rows_of_x + stage * cols, x + row * x_stride, row_bytes, &full[stage]);
        if constexpr (ADD) bulk_load(rows_of_residual + stage * cols, residual + row * residual_stride, row_bytes, &full[stage]);
    };
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) mbarrier_init(&full[stage], 1);
        fence_mbarrier_init();
        for (int stage = 0; stage < STAGES; ++stage) {
            const long long row = blockIdx.x + stage * static_cast<long long>(gridDim.x);
            if (row < rows) fetch(stage, row);
        }
    }
    Vector<W, WIDTH> weights[VECTORS], shifts[VECTORS];
    Vector<T, WIDTH> biases[VECTORS];
    load_share<THREADS>(weight, weights, cols, first, 1.0f);
    if constexpr (LAYER) load_share<THREADS>(shift, shifts, cols, first, 0.0f);
    if constexpr (ADD) load_share<THREADS>(bias, biases, cols, first, 0.0f);
    __syncthreads();

    int stage = 0, parity = 0, turn = 0;
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        mbarrier_wait(&full[stage], parity);
        Vector<T, WIDTH> share[VECTORS];
        load_share<THREADS>(rows_of_x + stage * cols, share, cols, first, 0.0f);
        if constexpr (ADD) {
            Vector<T, WIDTH> added[VECTORS];
            load_share<THREADS>(rows_of_residual + stage * cols, added, cols, first, 0.0f);
            add_residual<THREADS>(share, added, biases, sum + row * cols, cols, first);
        }
        const auto refill = [&] {  // all have met since they read this stage
            const long long next = row + STAGES * static_cast<long long>(gridDim.x);
            if (threadIdx.x == 0 && next < rows) fetch(stage, next);
        };
        float value[VECTORS][WIDTH];
        widen(share, value);
        if constexpr (LAYER) {
            subtract_mean<THREADS>(value, cols, first, meeting[0]);
            refill();
        }
        write_normalised<KIND, THREADS>(value, weights, shifts, y + row * cols, scale + row, cols, first, eps, meeting[LAYER ? 1 : turn], [&] {
            if constexpr (!LAYER) refill();
        });
        turn ^= 1;
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
}
