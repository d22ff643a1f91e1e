// Scaled matmul, v3: 256 rows a block, 128 of them a warpgroup's; 128 where that leaves fewer multiprocessors without work (sm_90a).
//   Idea      v2's tile of 128 x 128 reads 64 bytes from L2 for each clock that its products take, more than L2 gives, since a second set of
//             sums left no registers for a larger one. But the set that the tensor cores fill need not be as large as the tile: a warpgroup
//             multiplies the upper 64 of its rows, adds up, then the lower 64, with the same columns of B. While it adds up, the other
//             warpgroup multiplies. So 256 x 128 of sums fit, with 48 bytes a clock. And the scales and the bias of a tile's columns are
//             fetched while it is multiplied, into shared memory: v2 waits for them, element by element, when all is done.
//   Predicts  Where v2 waits for L2 and at its tiles' ends, a third less of the one, and 10 clocks in place of 60 for two elements of the other.
//   Measured  data/measured/h200/scaled_matmul.csv: at 4096^3 126 -> 106 us (torch._scaled_mm 105), at m = 8192, n = 28672, k = 4096 1.82 -> 1.53
//             ms (1.54). Without PROMOTE (v3_tall_fast) 98.3 us at 4096^3: the additions cost 8%. v2_hopper's 128 x 256 take 95.3, and 80 bytes a
//             clock from shared memory in place of 96; at m = 512 they leave multiprocessors idle, 23.6 us for n = k = 4096, v3_tall_fast 14.1.
//             Fetching B for two blocks at once (CLUSTER = 2) made nothing faster. Nor did letting one warpgroup begin two stages before the
//             other, so that they end tiles in turn: two of four stages are then no longer ahead, and every shape took longer.
//   128 rows  (HALVES = 1) take 0.54 of the time that 256 do, for half the products: only where the last round of tiles would be emptier.
//   Wastes    Both warpgroups end a tile at the same time, and the tensor cores wait until it is written; the last wave of tiles.
//
// With PROMOTE the sums are float32's, begun anew every 128 of k; without, the tensor cores' own, as in v2_hopper.
#include "stages.cuh"

// a, b and c: tensor maps of (m, k), (n, k) and the result (m, n). Scales: one a row of a, one a column of b. CLUSTER blocks, one above the
// other, share their columns of B. Tiles are taken in bands of `band` rows of tiles.
template <class Out, int HALVES, int COLUMNS, int STAGES, int SLABS, bool PROMOTE, int CLUSTER>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    scaled_matmul_tall(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap c, int m, int n,
                       int k, const float* scale_a, const float* scale_b, const Out* bias, int band) {
    static_assert(COLUMNS <= GROUP, "a thread fetches the scale of a column");
    constexpr int OWN_ROWS = 64 * HALVES, ROWS = OWN_ROWS * CONSUMERS;
    using Memory = Layout<__nv_fp8_e4m3, ROWS, COLUMNS, STAGES, SLABS>;
    extern __shared__ __align__(1024) char dynamic[];
    __shared__ float2 of_columns[CONSUMERS][COLUMNS];  // scale and bias
    const Memory memory(dynamic);
    Mbarrier *full = memory.full(), *empty = memory.empty();
    const int rank = CLUSTER > 1 ? cluster_rank() : 0;
    const int steps = (k + DEPTH - 1) / DEPTH;
    const int row_tiles = (m + ROWS * CLUSTER - 1) / (ROWS * CLUSTER), column_tiles = (n + COLUMNS - 1) / COLUMNS;
    const int tiles = row_tiles * column_tiles, clusters = gridDim.x / CLUSTER;
    const int warpgroup = threadIdx.x / GROUP, thread = threadIdx.x % GROUP, lane = threadIdx.x % 32;

    start<STAGES, CLUSTER>(memory);
    if (warpgroup == CONSUMERS) return fetch<ROWS, COLUMNS, STAGES, CLUSTER>(memory, a, b, rank, steps, row_tiles, column_tiles, band);

    Ring<STAGES> ring;
    register_allocate<232>();
    float sums[HALVES][COLUMNS / 2];
    int slab = 0;
    auto multiply = [&](int half, float(&to)[COLUMNS / 2], bool added) {
        const MatrixDescriptor slab_a = matrix_descriptor(memory.a(ring.stage) + (warpgroup * OWN_ROWS + half * 64) * ROW_BYTES, 0, 8 * ROW_BYTES, 128);
        const MatrixDescriptor slab_b = matrix_descriptor(memory.b(ring.stage), 0, 8 * ROW_BYTES, 128);
#pragma unroll
        for (int i = 0; i < ROW_BYTES / 32; ++i) wgmma<__nv_fp8_e4m3>(to, slab_a + 2 * i, slab_b + 2 * i, added || i > 0);
        wgmma_commit();
    };
    auto release = [&](int stage) {
        __syncwarp();
        if (CLUSTER > 1) {
            if (lane < CLUSTER) mbarrier_arrive_remote_read(&empty[stage], lane);
        } else if (lane == 0) {
            mbarrier_arrive(&empty[stage]);
        }
    };

    for (int index = blockIdx.x / CLUSTER; index < tiles; index += clusters) {
        const Tile tile(index, row_tiles, column_tiles, band);
        const int row = (tile.row * CLUSTER + rank) * ROWS + warpgroup * OWN_ROWS, column = tile.column * COLUMNS;
        const int own_row = row + thread / 32 * 16 + lane / 4;
        float of_rows[HALVES][2];
#pragma unroll
        for (int i = 0; i < 2 * HALVES; ++i) {
            const int at = own_row + i / 2 * 64 + i % 2 * 8;
            of_rows[i / 2][i % 2] = at < m ? scale_a[at] : 0.0f;
        }
        if (thread < COLUMNS) {
            const int at = column + thread;
            of_columns[warpgroup][thread] = make_float2(at < n ? scale_b[at] : 0.0f, bias != nullptr && at < n ? to_float(bias[at]) : 0.0f);
        }

        if constexpr (PROMOTE) {
#pragma unroll
            for (int i = 0; i < HALVES * COLUMNS / 2; ++i) sums[i / (COLUMNS / 2)][i % (COLUMNS / 2)] = 0.0f;
            for (int step = 0; step < steps; ++step, ring.advance()) {
                mbarrier_wait(&full[ring.stage], ring.parity);
#pragma unroll
                for (int half = 0; half < HALVES; ++half) {
                    float d[COLUMNS / 2];
                    wgmma_fence();
                    multiply(half, d, false);
                    wgmma_wait<0>(d);
                    if (half == HALVES - 1) release(ring.stage);
#pragma unroll
                    for (int i = 0; i < COLUMNS / 2; ++i) sums[half][i] += d[i];
                }
            }
        } else {
            for (int step = 0; step < steps; ++step) {
                mbarrier_wait(&full[ring.stage], ring.parity);
                wgmma_fence();
#pragma unroll
                for (int half = 0; half < HALVES; ++half) multiply(half, sums[half], step > 0);
                if (step > 0) {
                    wgmma_wait<HALVES>();
                    release(ring.stage > 0 ? ring.stage - 1 : STAGES - 1);
                }
                ring.advance();
            }
#pragma unroll
            for (int half = 0; half < HALVES; ++half) wgmma_wait<0>(sums[half]);
            release(ring.stage > 0 ? ring.stage - 1 : STAGES - 1);
        }

        constexpr int OWN = SLABS / CONSUMERS;  // slabs of this warpgroup
#pragma unroll
        for (int half = 0; half < HALVES; ++half) {
            auto finished = [&](float(&pair)[2], int r, int col) {
                const float2* const two = &of_columns[warpgroup][col - column];
                const float of_row = r == own_row + 64 * half ? of_rows[half][0] : of_rows[half][1];
                pair[0] = fmaf(pair[0], of_row * two[0].x, two[0].y);
                pair[1] = fmaf(pair[1], of_row * two[1].x, two[1].y);
            };
            store_tile<Out, COLUMNS, OWN>(c, memory.slab(warpgroup * OWN), slab, sums[half], row + 64 * half, column, warpgroup, finished);
        }
    }
    if (thread == 0) tma_wait_read<0>();
    if (CLUSTER > 1) cluster_sync();
}
