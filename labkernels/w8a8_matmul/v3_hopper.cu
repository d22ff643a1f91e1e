// W8A8 matmul, v3: Hopper. wgmma multiplies 64 x 256 x 32 bytes in one instruction, fed by the copy engine (sm_90a).
//   Idea      The machine of v7 of matmul: a thread that copies, two warpgroups of 64 x 256 each, blocks that stay. A stage of 128 bytes
//             now holds 128 of k, and sums are int32, which no order of adding can change: they may stay in the tensor cores as long as they
//             like, where 8-bit floats must be taken out (v2_promoted of scaled_matmul).
//   Predicts  128 x 256 x 128 in 1024 clocks, twice the multiply-adds of bf16 for the same bytes from shared memory and L2. So what is not
//             multiplication weighs twice as much: scales of the columns are asked for before the first multiplication of a tile, wait in
//             registers, and pass through shared memory to the threads whose columns they belong to.
//   Measured  data/measured/h200/w8a8_matmul.csv, together with the rows' quantisation: 4096 x 4096 x 11008 564 -> 261 us (cuBLAS in bfloat16
//             456), x 11008 x 4096 255 (484), x 28672 x 8192 1199 (2626); 256 tokens 27.4 (40.3).
//   Wastes    Nobody multiplies while a tile is scaled and written; the last wave of tiles.
#include "../matmul/hopper.cuh"
#include "setmaxnreg.cuh"
#include "wgmma.cuh"

// q, weight and c: tensor maps of (m, k), (n, k) and the result (m, n). Scales: one a row of q, one a row of the weight. bias (n,) or null,
// on a multiple of two elements. Tiles are taken in bands of `band` rows of tiles.
template <class Out, int ROWS, int COLUMNS, int CONSUMERS, int STAGES, int SLABS>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    w8a8_hopper(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap weight, const __grid_constant__ TensorMap c, int m, int n,
                int k, const float* scale_q, const float* scale_weight, const Out* bias, int band) {
    using Memory = Layout<signed char, ROWS, COLUMNS, STAGES, SLABS>;
    static_assert(ROWS == 64 * CONSUMERS, "a warpgroup has 64 rows");
    constexpr int DEPTH = Memory::DEPTH, SCALES = (COLUMNS + GROUP - 1) / GROUP;
    extern __shared__ __align__(1024) char dynamic[];
    __shared__ float column_scales[CONSUMERS][COLUMNS];
    const Memory memory(dynamic);
    Mbarrier *full = memory.full(), *empty = memory.empty();
    const int steps = (k + DEPTH - 1) / DEPTH;
    const int row_tiles = (m + ROWS - 1) / ROWS, column_tiles = (n + COLUMNS - 1) / COLUMNS, tiles = row_tiles * column_tiles;
    const int warpgroup = threadIdx.x / GROUP, thread = threadIdx.x % GROUP, lane = threadIdx.x % 32;

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], CONSUMERS * 4);
        }
        fence_mbarrier_init();
    }
    __syncthreads();

    Ring<STAGES> ring;
    if (warpgroup == CONSUMERS) {
        register_deallocate<40>();
        for (int index = blockIdx.x; index < tiles && thread == 0; index += gridDim.x) {
            const Tile tile(index, row_tiles, column_tiles, band);
            for (int step = 0; step < steps; ++step, ring.advance()) {
                mbarrier_wait(&empty[ring.stage], ring.parity ^ 1);
                mbarrier_arrive_expect_tx(&full[ring.stage], Memory::STAGE_BYTES);
                tma_load(memory.a(ring.stage), q, &full[ring.stage], step * DEPTH, tile.row * ROWS);
                tma_load(memory.b(ring.stage), weight, &full[ring.stage], step * DEPTH, tile.column * COLUMNS);
            }
        }
        return;
    }

    register_allocate<CONSUMERS == 2 ? 232 : 248>();
    int d[COLUMNS / 2];
    int slab = 0;
    const auto release = [&](int stage) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&empty[stage]);
    };
    for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
        const Tile tile(index, row_tiles, column_tiles, band);
        const int row = tile.row * ROWS + warpgroup * 64, column = tile.column * COLUMNS;
        float scale_columns[SCALES], scale_rows[2];
#pragma unroll
        for (int i = 0; i < SCALES; ++i) scale_columns[i] = column + thread + i * GROUP < n ? scale_weight[column + thread + i * GROUP] : 0.0f;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int own = row + thread / 32 * 16 + lane / 4 + 8 * i;
            scale_rows[i] = own < m ? scale_q[own] : 0.0f;
        }
        int before = 0;
        for (int step = 0; step < steps; ++step, ring.advance()) {
            mbarrier_wait(&full[ring.stage], ring.parity);
            wgmma_fence();
            const MatrixDescriptor tile_a = matrix_descriptor(memory.a(ring.stage) + warpgroup * 64 * ROW_BYTES, 0, 8 * ROW_BYTES, 128);
            const MatrixDescriptor tile_b = matrix_descriptor(memory.b(ring.stage), 0, 8 * ROW_BYTES, 128);
#pragma unroll
            for (int i = 0; i < ROW_BYTES / 32; ++i) wgmma<signed char>(d, tile_a + 2 * i, tile_b + 2 * i, step + i > 0);
            wgmma_commit();
            wgmma_wait<1>();
            if (step > 0) release(before);
            before = ring.stage;
        }
        wgmma_wait<0>(d);
        release(before);

        float* const scales = column_scales[warpgroup];  // the last tile's have been read: store_tile ends with a barrier
#pragma unroll
        for (int i = 0; i < SCALES; ++i)
            if (COLUMNS % GROUP == 0 || thread + i * GROUP < COLUMNS) scales[thread + i * GROUP] = scale_columns[i];
        named_barrier_sync(1 + warpgroup, GROUP);
        float sums[COLUMNS / 2];  // still ints
#pragma unroll
        for (int i = 0; i < COLUMNS / 2; ++i) sums[i] = __int_as_float(d[i]);
        constexpr int OWN = SLABS / CONSUMERS;  // slabs of this warpgroup
        const auto finished = [&](float(&pair)[2], int r, int col) {
            const float scale_row = r & 8 ? scale_rows[1] : scale_rows[0];
            const float2 scale = *reinterpret_cast<const float2*>(scales + col - column);
            pair[0] = static_cast<float>(__float_as_int(pair[0])) * (scale_row * scale.x);
            pair[1] = static_cast<float>(__float_as_int(pair[1])) * (scale_row * scale.y);
            if (r < m && col < n) finish<0>(pair, bias, static_cast<const Out*>(nullptr), 0, r, col);
        };
        store_tile<Out, COLUMNS, OWN>(c, memory.slab(warpgroup * OWN), slab, sums, row, column, warpgroup, finished);
    }
    if (thread == 0) tma_wait_read<0>();
}
