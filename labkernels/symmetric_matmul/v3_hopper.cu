// Symmetric matmul, v3: Hopper (sm_90a). matmul's v7 on the tiles on and above the diagonal; the copy engine stores each tile twice.
//   Idea      A producer thread, two warpgroups of wgmma, tiles of 128 x 128, and both operands from the same tensor map. When a tile is
//             done, each warpgroup stores its 64 x 128 sums, and then the same registers again through stmatrix.trans, turned round, at
//             the mirrored place.
//   Predicts  T (T + 1) / 2 tiles in place of T^2: at m = 1536, 78 of 144. A mirrored store costs no products and no reads.
//   Measured  data/measured/h200/symmetric_matmul.csv: 4096 x 4096 in bfloat16 in 104 us, cuBLAS (both halves) 174; 8192 837, 1551; Newton-Schulz
//             of 24 matrices of 1536 x 4096 396, 643; one of them 24.6, 33.1. Of 1024, where the tiles are fewer than the multiprocessors, 8.9,
//             8.3.
//   Wastes    The half of a tile on the diagonal that is below it. 128 x 128 tiles fetch 64 bytes a clock from L2, v7's 128 x 256 fetch 48.
//             The epilogue is twice as long, and a multiprocessor multiplies nothing under it.
#include "../matmul/hopper.cuh"
#include "setmaxnreg.cuh"
#include "vector.cuh"
#include "wgmma.cuh"

constexpr int CONSUMERS = 2, SIZE = 128;  // a tile is SIZE x SIZE

// The `index`-th tile: matrix by matrix of the batch, column by column of tiles, each from the top to the diagonal.
struct Upper {
    int batch, row, column;
    __device__ Upper(int index, int side) {
        const int each = side * (side + 1) / 2;
        batch = index / each;
        row = index % each;
        column = static_cast<int>((sqrtf(8.0f * row + 1.0f) - 1.0f) * 0.5f);
        while (column * (column + 1) / 2 > row) --column;
        while ((column + 1) * (column + 2) / 2 <= row) ++column;
        row -= column * (column + 1) / 2;
    }
};

// 64 x SIZE sums `d`, laid out as wgmma leaves them, to (row, column) of a matrix of the batch; MIRRORED: turned round, sum (r, c) to
// (column + c, row + r). As store_tile (hopper.cuh): through SLABS slabs of the warpgroup's own, of which `next` have been used.
template <class T, bool MIRRORED, int SLABS>
__device__ __forceinline__ void store(const TensorMap& out, char* slabs, int& next, const float (&d)[SIZE / 2], int row, int column, int batch,
                                      int warpgroup) {
    const int thread = threadIdx.x % GROUP, lane = threadIdx.x % 32, warp = thread / 32;
#pragma unroll
    for (int slab = 0; slab < SIZE / 64; ++slab, ++next) {
        char* staged = slabs + next % SLABS * (64 * ROW_BYTES);
        if (thread == 0) tma_wait_read<SLABS - 1>();
        named_barrier_sync(1 + warpgroup, GROUP);
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {  // of blocks of 8 columns
            unsigned packed[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = (slab * 64 + 16 * pair) / 2 + 2 * i;
                packed[i] = pack_pair<T>(d[at], d[at + 1]);
            }
            const int staged_row = MIRRORED ? 16 * pair + lane / 16 * 8 + lane % 8 : 16 * warp + lane % 16;
            const int piece = MIRRORED ? 2 * warp + lane / 8 % 2 : 2 * pair + lane / 16;
            char* const to = staged + staged_row * ROW_BYTES + ((piece ^ staged_row % 8) << 4);
            if (MIRRORED) stmatrix_trans(to, packed);
            else stmatrix(to, packed);
        }
        fence_proxy_async_shared();
        named_barrier_sync(1 + warpgroup, GROUP);
        if (thread == 0) {
            if (MIRRORED) tma_store(out, staged, row, column + slab * 64, batch);
            else tma_store(out, staged, column + slab * 64, row, batch);
            tma_commit();
        }
    }
}

// x and out: tensor maps of (batch, m, k), boxes of (1, SIZE, 64), and of the result (batch, m, m), boxes of (1, 64, 64). c (batch, m, m)
// may be null.
template <class T, int STAGES, int SLABS>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    symmetric_hopper(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap out, const T* c, int m, int k, int batches, float alpha,
                     float beta) {
    using Memory = Layout<T, SIZE, SIZE, STAGES, SLABS>;
    constexpr int DEPTH = Memory::DEPTH, OWN = SLABS / CONSUMERS;
    extern __shared__ __align__(1024) char dynamic[];
    const Memory memory(dynamic);
    Mbarrier *full = memory.full(), *empty = memory.empty();
    const int steps = (k + DEPTH - 1) / DEPTH, side = (m + SIZE - 1) / SIZE, tiles = batches * (side * (side + 1) / 2);
    const int warpgroup = threadIdx.x / GROUP, thread = threadIdx.x % GROUP, lane = threadIdx.x % 32;

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], CONSUMERS * 4);
        }
        fence_mbarrier_init();
    }
    __syncthreads();

    if (warpgroup == CONSUMERS) {
        register_deallocate<40>();
        if (threadIdx.x != CONSUMERS * GROUP) return;
        Ring<STAGES> ring;
        for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
            const Upper tile(index, side);
            const bool diagonal = tile.row == tile.column;  // both operands are the same rows
            for (int step = 0; step < steps; ++step, ring.advance()) {
                mbarrier_wait(&empty[ring.stage], ring.parity ^ 1);
                mbarrier_arrive_expect_tx(&full[ring.stage], diagonal ? Memory::A_BYTES : Memory::STAGE_BYTES);
                tma_load(memory.a(ring.stage), x, &full[ring.stage], step * DEPTH, tile.row * SIZE, tile.batch);
                if (!diagonal) tma_load(memory.b(ring.stage), x, &full[ring.stage], step * DEPTH, tile.column * SIZE, tile.batch);
            }
        }
        return;
    }

    register_allocate<232>();
    float d[SIZE / 2];
    Ring<STAGES> ring;
    int slab = 0;
    for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
        const Upper tile(index, side);
        const bool diagonal = tile.row == tile.column;
        const int row = tile.row * SIZE + warpgroup * 64, column = tile.column * SIZE;
        int before = 0;
        for (int step = 0; step < steps; ++step, ring.advance()) {
            mbarrier_wait(&full[ring.stage], ring.parity);
            wgmma_fence();
            const MatrixDescriptor slab_a = matrix_descriptor(memory.a(ring.stage) + warpgroup * 64 * ROW_BYTES, DEPTH * ROW_BYTES, 8 * ROW_BYTES, 128);
            const MatrixDescriptor slab_b =
                matrix_descriptor(diagonal ? memory.a(ring.stage) : memory.b(ring.stage), DEPTH * ROW_BYTES, 8 * ROW_BYTES, 128);
#pragma unroll
            for (int i = 0; i < ROW_BYTES / 32; ++i) wgmma<T, false, false>(d, slab_a + (i * 32 >> 4), slab_b + (i * 32 >> 4), step + i > 0);
            wgmma_commit();
            wgmma_wait<1>();
            if (step > 0) {
                __syncwarp();
                if (lane == 0) mbarrier_arrive(&empty[before]);
            }
            before = ring.stage;
        }
        wgmma_wait<0>(d);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&empty[before]);

#pragma unroll
        for (int i = 0; i < SIZE / 2; i += 2) {
            const int r = row + thread / 32 * 16 + lane / 4 + (i & 2 ? 8 : 0), col = column + i / 4 * 8 + lane % 4 * 2;
            float added[2] = {};
            if (c != nullptr && r < m && col < m) load_vector(c + (static_cast<long long>(tile.batch) * m + r) * m + col, added);  // m is a multiple of 8
            d[i] = alpha * d[i] + beta * added[0];
            d[i + 1] = alpha * d[i + 1] + beta * added[1];
        }
        store<T, false, OWN>(out, memory.slab(warpgroup * OWN), slab, d, row, column, tile.batch, warpgroup);
        if (!diagonal) store<T, true, OWN>(out, memory.slab(warpgroup * OWN), slab, d, row, column, tile.batch, warpgroup);
    }
    if (thread == 0) tma_wait_read<0>();
}
