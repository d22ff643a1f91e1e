// C (M x N, float32) = A (M x K, bf16) B^T (N x K, bf16), warp-specialised. One block owns a tile of 64 x 32; its first warpgroup
// multiplies (wgmma), one lane of a fifth warp fetches (TMA), and two stages of shared memory stand between them.
//
//   full[s]    completes when the 64 columns of A and B in stage s have come
//   empty[s]   completes when the warpgroup has multiplied them, and the stage may be filled again
//
// MISTAKE plants one of the mistakes that test_hopper_matmul.py expects the sanitizer to name; 0 is right.
#include <cuda_bf16.h>

#include "mbarrier.cuh"
#include "named_barrier.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

#ifndef MISTAKE
#define MISTAKE 0
#endif

constexpr int ROWS = 64, COLUMNS = 32, DEPTH = 64, STAGES = 2, CONSUMERS = 128;
constexpr int ROW_BYTES = DEPTH * sizeof(__nv_bfloat16);  // 128: one swizzled row
constexpr int SWIZZLE = MISTAKE == 5 ? 64 : 128;

extern "C" __global__ void __launch_bounds__(CONSUMERS + 32, 1)
    matmul(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap c, int depth) {
    __shared__ __align__(1024) __nv_bfloat16 tile_a[STAGES][ROWS * DEPTH];
    __shared__ __align__(1024) __nv_bfloat16 tile_b[STAGES][COLUMNS * DEPTH];
    __shared__ __align__(1024) float tile_c[ROWS * COLUMNS];
    __shared__ Mbarrier full[STAGES], empty[STAGES];
    const int row = blockIdx.y * ROWS, column = blockIdx.x * COLUMNS;
    const int steps = (depth + DEPTH - 1) / DEPTH;

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], CONSUMERS);
        }
        fence_mbarrier_init();
    }
    __syncthreads();

    if (threadIdx.x >= CONSUMERS) {
        if (threadIdx.x != CONSUMERS) return;
        for (int k = 0; k < steps; ++k) {
            const int s = k % STAGES, round = k / STAGES;
            if (MISTAKE != 1) mbarrier_wait(&empty[s], (round & 1) ^ 1);
            mbarrier_arrive_expect_tx(&full[s], (ROWS + COLUMNS) * ROW_BYTES + (MISTAKE == 8 ? 16 : 0));
            tma_load(tile_a[s], a, &full[s], k * DEPTH, row);
            tma_load(tile_b[s], b, &full[s], k * DEPTH, column);
        }
        return;
    }

    float d[COLUMNS / 2];
    for (int i = 0; i < COLUMNS / 2; ++i) d[i] = 0.0f;
    for (int k = 0; k < steps; ++k) {
        const int s = k % STAGES, round = k / STAGES;
        if (MISTAKE != 2) mbarrier_wait(&full[s], round & 1);
        if (MISTAKE != 6) wgmma_fence();
        const MatrixDescriptor slab_a = matrix_descriptor(tile_a[s], 0, 8 * ROW_BYTES, SWIZZLE);
        const MatrixDescriptor slab_b = matrix_descriptor(tile_b[s], 0, 8 * ROW_BYTES, SWIZZLE);
        for (int bytes = 0; bytes < ROW_BYTES; bytes += 32) wgmma<__nv_bfloat16>(d, slab_a + (bytes >> 4), slab_b + (bytes >> 4), true);
        if (MISTAKE != 7) wgmma_commit();
        if (MISTAKE != 3) wgmma_wait<0>(d);
        mbarrier_arrive(&empty[s]);
    }

    const int t = threadIdx.x;
    for (int i = 0; i < COLUMNS / 2; ++i) {
        const int r = 16 * (t / 32) + t % 32 / 4 + (i & 2 ? 8 : 0), col = 8 * (i / 4) + 2 * (t % 4) + (i & 1);
        tile_c[r * COLUMNS + col] = d[i];
    }
    if (MISTAKE != 4) fence_proxy_async();
    named_barrier_sync(1, CONSUMERS);
    if (t == 0) {
        tma_store(c, tile_c, column, row);
        if (MISTAKE != 9) {
            tma_commit();
            tma_wait_read<0>();
        }
    }
}
