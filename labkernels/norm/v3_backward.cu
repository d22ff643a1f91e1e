// Norms backward, v3: a ring of rows. As v2, with the rows of the next rounds on their way while this one is worked on.
//   Idea      The registers of v2 go into sums, and leave few threads to ask for memory. So the bulk copy engine asks (Hopper's TMA): rows
//             of x and of the gradient come into a ring of shared memory, 64 KB of them at a time on each multiprocessor. They wait for
//             their sums packed (packed.cuh); two rows share a block and the partial sums it leaves; the second kernel is launched
//             early, and finds its place as the first one's blocks end.
//   Predicts  The bytes of v2 at the speed of a copy, whatever the threads do between.
//   Measured  data/measured/h200/rms_norm_backward.csv: 127 -> 103 us for 16384 rows of 4096 in bfloat16, 92% of the limit (torch.compile 139,
//             Liger 235); of 8192 275 -> 198 (292); in float32 203 -> 208. layer_norm_backward.csv: 146 -> 136, 70%.
//   Wastes    The second kernel's few microseconds, and the first rows' latency. LayerNorm's two meetings a row take longer than its bytes.
#include "tma.cuh"
#include "backward_sum.cuh"
#include "norm.cuh"

// As norm_backward_registers, with GROUPS of THREADS threads in a block, each of which owns a row and has a ring; and ADD where `added` is not
// null. partial: (gridDim.x, cols), twice for kLayer. Rows must lie on multiples of 16 bytes and be a multiple of 16 bytes long; dynamic
// shared memory: for each group STAGES rows of x, of the gradient, and of `added`.
template <int KIND, bool ADD, class T, class W, int THREADS, int VECTORS, int WIDTH, int STAGES, int GROUPS, int BLOCKS>
__global__ void __launch_bounds__(THREADS * GROUPS, BLOCKS)
norm_backward_ring(const T* gradient, const T* x, const W* weight, const T* added, T* dx, float* partial, unsigned rows, int cols,
                   long long gradient_stride, long long x_stride, float eps) {
    constexpr bool LAYER = static_cast<Norm>(KIND) == Norm::kLayer;
    static_assert(THREADS > 32, "the meeting of several warps says that a stage has been read");
    static_assert(STAGES * 2 * sizeof(T) >= (1 + LAYER) * sizeof(float), "a group's sums take the place of its ring");
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ Mbarrier full[GROUPS][STAGES];
    __shared__ float meetings[GROUPS][2][3 * THREADS / 32];
    const int group = threadIdx.x / THREADS, thread = threadIdx.x % THREADS;
    const int first = thread * WIDTH, row_bytes = cols * static_cast<int>(sizeof(T));
    const unsigned owner = blockIdx.x * GROUPS + group, owners = gridDim.x * GROUPS;  // unsigned: rows + STAGES * owners fits
    T* const ring = reinterpret_cast<T*>(memory) + group * STAGES * (2 + ADD) * cols;  // x, gradient, added; x, gradient, added; ...
    float(&meeting)[2][3 * THREADS / 32] = meetings[group];

    const auto fetch = [&](int stage, long long row) {
        T* const target = ring + stage * (2 + ADD) * cols;
        mbarrier_arrive_expect_tx(&full[group][stage], (2 + ADD) * row_bytes);
        bulk_load(target, x + row * x_stride, row_bytes, &full[group][stage]);
        bulk_load(target + cols, gradient + row * gradient_stride, row_bytes, &full[group][stage]);
        if constexpr (ADD) bulk_load(target + 2 * cols, added + row * cols, row_bytes, &full[group][stage]);
    };
    if (thread == 0) {
        for (int stage = 0; stage < STAGES; ++stage) mbarrier_init(&full[group][stage], 1);
        fence_mbarrier_init();
        for (int stage = 0; stage < STAGES; ++stage) {
            if (owner + stage * owners < rows) fetch(stage, owner + stage * owners);
        }
    }
    Packed<W, WIDTH> weights[VECTORS];
    load_packed<THREADS>(weight, weights, cols, first, 1.0f);
    float dweight[VECTORS][WIDTH] = {}, dshift[LAYER ? VECTORS : 1][WIDTH] = {};
    __syncthreads();

    int stage = 0, parity = 0, turn = 0;
    for (unsigned row = owner; row < rows; row += owners, turn ^= 1) {
        mbarrier_wait(&full[group][stage], parity);
        const T* const source = ring + stage * (2 + ADD) * cols;
        Packed<T, WIDTH> share[VECTORS], gradients[VECTORS], more[VECTORS];
        load_packed<THREADS>(source, share, cols, first, 0.0f);
        load_packed<THREADS>(source + cols, gradients, cols, first, 0.0f);
        load_packed<THREADS>(ADD ? source + 2 * cols : nullptr, more, cols, first, 0.0f);
        const auto refill = [&] {  // all of the group have read this stage
            const unsigned next = row + STAGES * owners;
            if (thread == 0 && next < rows) fetch(stage, next);
        };
        write_gradient<KIND, THREADS, GROUPS>(share, gradients, more, weights, dweight, dshift, dx + static_cast<long long>(row) * cols, cols, first, eps,
                                              meeting[0], meeting[LAYER ? 1 : turn], refill);
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    grid_dependency_launch();
    if constexpr (GROUPS > 1) {  // the groups' sums become one, the first group's, in a fixed order
        float* const sums = reinterpret_cast<float*>(ring);
        if (group > 0) {
            write_partial<THREADS>(dweight, sums, cols, first);
            if constexpr (LAYER) write_partial<THREADS>(dshift, sums + cols, cols, first);
        }
        __syncthreads();
        if (group > 0) return;
#pragma unroll 1
        for (int other = 1; other < GROUPS; ++other) {
            const float* const others = sums + other * (STAGES * (2 + ADD) * cols * sizeof(T) / sizeof(float));
            add_partial<THREADS>(dweight, others, cols, first);
            if constexpr (LAYER) add_partial<THREADS>(dshift, others + cols, cols, first);
        }
    }
    write_partial<THREADS>(dweight, partial + blockIdx.x * static_cast<long long>(cols), cols, first);
    if constexpr (LAYER) write_partial<THREADS>(dshift, partial + (gridDim.x + blockIdx.x) * static_cast<long long>(cols), cols, first);
}
