// Quantised matmul, v5, for few rows of x: Hopper. y = x W^T for up to 64 rows of x at a time, W in 4 or 8 bits (sm_90a).
//   Idea      W is wgmma's A operand, which may come from registers: a lane reads its numbers from shared memory, as they are stored, makes
//             pairs of 16 bits of them, and the tensor cores take them from there. They are never written again. Rows of x are columns
//             of the result, 16 to 128 at a time, and go to shared memory by TMA, as W's tiles do. There are two sets of A registers: one is
//             filled while the tensor cores read the other.
//             Blocks share a tile's k, so that every SM has a part of W to read. Two are a cluster: each leaves its sums in shared memory, and
//             adds up half of the tile. More than two meet in memory, where the last one to come adds up: clusters of four leave a tenth of
//             the SMs without work, and what does not fit at once takes as long again.
//             The kernel may be launched early (early_launch.py): W's first stages are under way before the kernel that makes x has ended.
//   Predicts  11008 x 4096 in 4 bits are 22.5 MB, 5.3 us; x comes once for every 192 rows of W, 58 times in all: at 64 rows another 29 MB
//             from L2. Unpacking takes 16 instructions for 8 numbers of a lane: 4 us.
//   Measured  data/measured/h200/quant_matmul.csv: 11008 x 4096 in int4: 16 rows 24.6 -> 14.8 us (cuBLAS with a bf16 weight 28.5), 64 rows 37.0
//             -> 16.0 (27.1); there NF4 19.8, int8 21.5. 4096 x 4096 in int4: 16 rows 14.1 -> 7.3 (16.4); 64 rows 21.3 -> 10.2, and here cuBLAS
//             is faster, 9.3.
//   Wastes    A launch, the way of the first bytes from memory, and the meeting of the cluster: at 4096 x 4096 more than W itself takes.
#include "cluster.cuh"
#include "hopper_weights.cuh"
#include "setmaxnreg.cuh"
#include "wgmma.cuh"

// Those who have only read say so: nothing that they wrote to memory need be waited for, half a microsecond.
__device__ __forceinline__ void leave_cluster() {
    cluster_arrive_relaxed();
    cluster_wait();
}

// x, w and scales: tensor maps of (m, k), W as stored, (n, bytes of a row), and (groups, n). row_scales: of 8-bit numbers, one a row of W.
// y (m, n), contiguous, n a multiple of 4. Launch (SPLITS, tiles of rows * tiles of tokens) blocks; two SPLITS in clusters of two, more with a workspace of
// as many times THREADS * COUNT floats as there are blocks, and a counter for each tile, zero before and afterwards.
template <class T, Scheme SCHEME, int GROUP_SIZE, int CONSUMERS, int TOKENS, int STAGES, int SPLITS, int COPIES, int BLOCKS>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), BLOCKS)
    quant_matmul_few_rows(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap scales, T* y,
                          const float* row_scales, const float* codebook, int m, int n, int k,
                          float4* workspace, int* counters) {
    constexpr int ROWS = 64 * CONSUMERS, COUNT = TOKENS / 2, THREADS = CONSUMERS * GROUP, PITCH = ROWS + 4;  // PITCH: all banks are hit
    constexpr bool CLUSTER = SPLITS == 2, IN_MEMORY = SPLITS > 2;                                // where the blocks of a tile meet
    using Shared = Memory<SCHEME, GROUP_SIZE, ROWS, TOKENS, STEP, STAGES, COPIES>;
    static_assert(TOKENS * PITCH * 4 <= STAGES * Shared::STAGE_BYTES, "the sums lie where the stages were");
    extern __shared__ __align__(1024) char dynamic[];
    const Shared memory(dynamic);
    Mbarrier *full = memory.full(), *empty = memory.empty();
    const int row_tiles = (n + ROWS - 1) / ROWS, row = blockIdx.y % row_tiles * ROWS, first_token = blockIdx.y / row_tiles * TOKENS;
    const int rank = blockIdx.x, steps = (k + STEP - 1) / STEP, first = steps * rank / SPLITS, last = steps * (rank + 1) / SPLITS;
    const int warpgroup = threadIdx.x / GROUP, thread = threadIdx.x % GROUP, lane = threadIdx.x % 32;

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], CONSUMERS * 4);
        }
        fence_mbarrier_init();
    }
    if (SCHEME == Scheme::kCodebook) make_table<T, COPIES>(memory.table(), codebook, threadIdx.x, blockDim.x);
    __syncthreads();

    Ring<STAGES> ring;
    if (warpgroup == CONSUMERS) {
        register_deallocate<BLOCKS == 2 ? 48 : 56>();
        if (thread == 0) {
            const int ready = min(STAGES, last - first);
            for (int s = 0; s < ready; ++s) memory.load_w(s, w, scales, (first + s) * STEP, row);
            grid_dependency_wait();  // W does not come from the kernel before; x may
            grid_dependency_launch();
            for (int s = 0; s < ready; ++s) memory.load_x(s, x, (first + s) * STEP, first_token);
            for (int step = first + ready; step < last; ++step, ring.advance()) {
                mbarrier_wait(&empty[ring.stage], ring.parity);
                memory.load_w(ring.stage, w, scales, step * STEP, row);
                memory.load_x(ring.stage, x, step * STEP, first_token);
            }
        }
        if (CLUSTER) {
            cluster_sync();
            leave_cluster();
        }
        return;
    }

    register_allocate<BLOCKS == 2 ? 96 : CONSUMERS == 4 ? 104 : CONSUMERS == 3 ? 152 : 224>();
    const Unpacker<T, SCHEME, GROUP_SIZE, ROWS, STEP, COPIES> unpacker(memory.table());
    const int own_row = warpgroup * 64 + thread / 32 * 16 + lane / 4;
    float d[COUNT];
    unsigned a[2][4][4];  // two sets, of 64 of k each
#pragma unroll
    for (int i = 0; i < COUNT; ++i) d[i] = 0.0f;
    int before = -1;
    const auto release = [&](int stage) {
        __syncwarp();
        if (lane == 0 && stage >= 0) mbarrier_arrive(&empty[stage]);
    };
    for (int step = first; step < last; ++step, ring.advance()) {
        mbarrier_wait(&full[ring.stage], ring.parity);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            unpacker.unpack(a[half], memory.w(ring.stage), memory.scales(ring.stage), half, own_row);
            const MatrixDescriptor tokens = matrix_descriptor(memory.x(ring.stage) + half * Shared::PANEL_BYTES, 0, 8 * ROW_BYTES, 128);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 4; ++i) wgmma<T>(d, a[half][i], tokens + 2 * i, true);
            wgmma_commit();
            wgmma_wait<1>();
            if (half == 0) release(before);
        }
        before = ring.stage;
    }
    wgmma_wait<0>(d);
    named_barrier_sync(1, THREADS);  // all stages have been read

    grid_dependency_wait();
    if constexpr (IN_MEMORY) {
        __shared__ int arrived_before;
        float4* const together = workspace + static_cast<long long>(blockIdx.y) * SPLITS * (THREADS * COUNT / 4) + threadIdx.x;
#pragma unroll
        for (int i = 0; i < COUNT / 4; ++i) together[(rank * (COUNT / 4) + i) * THREADS] = make_float4(d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]);
        __threadfence();
        named_barrier_sync(1, THREADS);
        if (threadIdx.x == 0) {
            arrived_before = atomicAdd(&counters[blockIdx.y], 1);
            if (arrived_before == SPLITS - 1) counters[blockIdx.y] = 0;
        }
        named_barrier_sync(1, THREADS);
        if (arrived_before < SPLITS - 1) return;
        __threadfence();
#pragma unroll
        for (int i = 0; i < COUNT; ++i) d[i] = 0.0f;
#pragma unroll 2
        for (int s = 0; s < SPLITS; ++s)
#pragma unroll
            for (int i = 0; i < COUNT / 4; ++i) {
                const float4 part = __ldcg(together + (s * (COUNT / 4) + i) * THREADS);
                d[4 * i] += part.x, d[4 * i + 1] += part.y, d[4 * i + 2] += part.z, d[4 * i + 3] += part.w;
            }
    }
    constexpr int HERE = CLUSTER ? 2 : 1;  // blocks that add up, each a part of the tile
    const int share = CLUSTER ? rank : 0;
    float* const sums = reinterpret_cast<float*>(dynamic);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) sums[(i / 4 * 8 + lane % 4 * 2 + i % 2) * PITCH + own_row + i / 2 % 2 * 8] = d[i];
    if (CLUSTER) cluster_sync();
    else named_barrier_sync(1, THREADS);
    const int tokens = min(TOKENS, m - first_token);
    for (int i = share * THREADS + threadIdx.x; i < tokens * (ROWS / 4); i += HERE * THREADS) {
        const int token = i / (ROWS / 4), at = i % (ROWS / 4) * 4;
        if (row + at >= n) continue;
        float4 parts[HERE];
#pragma unroll
        for (int s = 0; s < HERE; ++s) {
            const float4* const own = reinterpret_cast<const float4*>(sums + token * PITCH + at);
            parts[s] = CLUSTER ? *map_shared_rank(own, s) : *own;
        }
        float total[4] = {};
#pragma unroll
        for (int s = 0; s < HERE; ++s) {
            const float each[4] = {parts[s].x, parts[s].y, parts[s].z, parts[s].w};
#pragma unroll
            for (int e = 0; e < 4; ++e) total[e] += each[e];
        }
        if (GROUP_SIZE == 0)
            for (int e = 0; e < 4; ++e) total[e] *= row_scales[row + at + e];
        store_vector(y + (first_token + token) * (long long)n + row + at, total);
    }
    if (CLUSTER) leave_cluster();  // the others may still be reading here
}
