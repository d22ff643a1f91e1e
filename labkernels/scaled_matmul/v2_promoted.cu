// Scaled matmul, v2: 8-bit floats on Hopper's tensor cores, summed in float32 (sm_90a).
//   Idea      TMA fetches, warpgroups multiply with wgmma, as in v7 of matmul; a stage of 128 bytes now holds 128 of k. But in fp8 the
//             tensor cores keep about 13 binary digits of a sum: after thousands of terms it has lost more than the factors' own rounding
//             costs. So every 128 * PROMOTE terms begin a new sum, and the finished one is added to float32 registers by the threads, while
//             the tensor cores go on with the next (SETS = 2) or for the other warpgroup.
//   Predicts  Two registers for every element of a tile, or three: no more than 128 x 128 (192) of C fit a block, which reads 64 (53) bytes
//             from L2 for each clock of its tensor cores, where 128 x 256 takes 48. That, not the additions, is what the exactness costs.
//   Measured  data/measured/h200/scaled_matmul.csv: 34.7 ms -> 21.0 us at 2048^3 (torch._scaled_mm with float32 sums 16.2); at 4096^3 126 us
//             (105), and 95.3 with sums left to the tensor cores and 128 x 256 (v2_hopper, which is v7 of matmul).
//   Wastes    Scales and biases are asked for when they are wanted, element by element: with such loads v2_hopper took 141 us at 4096^3. The last wave
//             of tiles.
#include "stages.cuh"

constexpr int ROWS = 64 * CONSUMERS;

// a, b and c: tensor maps of (m, k), (n, k) and the result (m, n). Scales: one a row of a, one a column of b. CLUSTER blocks, one above the
// other, share their columns of B. Tiles are taken in bands of `band` rows of tiles.
template <class Out, int COLUMNS, int STAGES, int SLABS, int SETS, int PROMOTE, int CLUSTER>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    scaled_matmul_promoted(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap c,
                           int m, int n, int k, const float* scale_a, const float* scale_b, const Out* bias, int band) {
    static_assert(SETS == 1 || SETS == 2 && PROMOTE == 1, "two sets take turns at every stage");
    using Memory = Layout<__nv_fp8_e4m3, ROWS, COLUMNS, STAGES, SLABS>;
    extern __shared__ __align__(1024) char dynamic[];
    const Memory memory(dynamic);
    Mbarrier *full = memory.full(), *empty = memory.empty();
    const int rank = CLUSTER > 1 ? cluster_rank() : 0;
    const int steps = (k + DEPTH - 1) / DEPTH;
    const int row_tiles = (m + ROWS * CLUSTER - 1) / (ROWS * CLUSTER), column_tiles = (n + COLUMNS - 1) / COLUMNS;
    const int tiles = row_tiles * column_tiles, clusters = gridDim.x / CLUSTER;
    const int warpgroup = threadIdx.x / GROUP, lane = threadIdx.x % 32;

    start<STAGES, CLUSTER>(memory);
    if (warpgroup == CONSUMERS) return fetch<ROWS, COLUMNS, STAGES, CLUSTER>(memory, a, b, rank, steps, row_tiles, column_tiles, band);

    Ring<STAGES> ring;
    register_allocate<232>();
    float d[SETS][COLUMNS / 2], sums[COLUMNS / 2];
    int slab = 0;
    // Waits for the next stage and multiplies it, as a group of wgmma: into a new sum, or added to the one there is.
    auto multiply = [&](float(&to)[COLUMNS / 2], bool added) {
        mbarrier_wait(&full[ring.stage], ring.parity);
        wgmma_fence();
        const MatrixDescriptor slab_a = matrix_descriptor(memory.a(ring.stage) + warpgroup * 64 * ROW_BYTES, 0, 8 * ROW_BYTES, 128);
        const MatrixDescriptor slab_b = matrix_descriptor(memory.b(ring.stage), 0, 8 * ROW_BYTES, 128);
#pragma unroll
        for (int i = 0; i < ROW_BYTES / 32; ++i) wgmma<__nv_fp8_e4m3>(to, slab_a + 2 * i, slab_b + 2 * i, added || i > 0);
        wgmma_commit();
        ring.advance();
    };
    // The stage before the last `ago` ones may be filled again.
    auto release = [&](int ago) {
        const int stage = ring.stage > ago ? ring.stage - ago - 1 : ring.stage - ago - 1 + STAGES;
        __syncwarp();
        if (CLUSTER > 1) {
            if (lane < CLUSTER) mbarrier_arrive_remote_read(&empty[stage], lane);
        } else if (lane == 0) {
            mbarrier_arrive(&empty[stage]);
        }
    };
    // The sums in `of` are complete but for the last `pending` groups of wgmma, which work on others: they are added up.
    auto promote = [&](int pending, float(&of)[COLUMNS / 2]) {
        if (pending == 1) wgmma_wait<1>(of);
        else wgmma_wait<0>(of);
        release(pending);
#pragma unroll
        for (int i = 0; i < COLUMNS / 2; ++i) sums[i] += of[i];
    };

    for (int index = blockIdx.x / CLUSTER; index < tiles; index += clusters) {
        const Tile tile(index, row_tiles, column_tiles, band);
        const int row = (tile.row * CLUSTER + rank) * ROWS + warpgroup * 64, column = tile.column * COLUMNS;
#pragma unroll
        for (int i = 0; i < COLUMNS / 2; ++i) sums[i] = 0.0f;
        if constexpr (SETS == 2) {
            multiply(d[0], false);
            int step = 1;
            for (; step + 1 < steps; step += 2) {
                multiply(d[1], false);
                promote(1, d[0]);
                multiply(d[0], false);
                promote(1, d[1]);
            }
            if (step < steps) {
                multiply(d[1], false);
                promote(1, d[0]);
                promote(0, d[1]);
            } else {
                promote(0, d[0]);
            }
        } else {
            for (int step = 0; step < steps; step += PROMOTE) {
                multiply(d[0], false);
                for (int part = 1; part < PROMOTE && step + part < steps; ++part) {
                    multiply(d[0], true);
                    wgmma_wait<1>();
                    release(1);
                }
                promote(0, d[0]);
            }
        }
        constexpr int OWN = SLABS / CONSUMERS;  // slabs of this warpgroup
        auto finished = [&](float(&pair)[2], int r, int col) {
            if (r >= m || col >= n) return;
            pair[0] *= scale_a[r] * scale_b[col];
            pair[1] *= scale_a[r] * scale_b[col + 1];
            finish<0>(pair, bias, static_cast<const Out*>(nullptr), 0, r, col);
        };
        store_tile<Out, COLUMNS, OWN>(c, memory.slab(warpgroup * OWN), slab, sums, row, column, warpgroup, finished);
    }
    if (threadIdx.x % GROUP == 0) tma_wait_read<0>();
    if (CLUSTER > 1) cluster_sync();
}
