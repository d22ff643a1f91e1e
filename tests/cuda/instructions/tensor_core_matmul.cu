// Tensor cores fed by hand: C = A * B in bfloat16, summed in float32. A (m, k) and B (k, n) by rows; k and n multiples of 8.
//   One block of 4 warps owns 64 x 64 of C and walks along k in tiles of 32, which cp.async brings while the last one is multiplied.
//   Each warp owns 32 x 32: 2 x 4 products of 16 x 8, whose fragments ldmatrix takes from shared memory (B's transposed on the way).
//   Rows in shared memory are 16 bytes longer than they need be, so that the eight rows of an ldmatrix lie in different banks.
#include <cuda_bf16.h>

#include "cp_async.cuh"
#include "ldmatrix.cuh"
#include "mma.cuh"

constexpr int TILE_M = 64, TILE_N = 64, TILE_K = 32, THREADS = 128;
constexpr int A_PITCH = TILE_K + 8, B_PITCH = TILE_N + 8;

struct __align__(16) Stage {
    __nv_bfloat16 a[TILE_M][A_PITCH], b[TILE_K][B_PITCH];
};

// Each thread starts two copies of 16 bytes for A and two for B. What lies outside of the matrices becomes zero.
__device__ __forceinline__ void load_stage(Stage& stage, const __nv_bfloat16* a, const __nv_bfloat16* b, int m, int n, int k, int tile) {
    for (int i = threadIdx.x; i < TILE_M * TILE_K / 8; i += THREADS) {
        const int row = i / (TILE_K / 8), column = i % (TILE_K / 8) * 8;
        const int from_row = blockIdx.y * TILE_M + row, from_column = tile * TILE_K + column;
        const bool inside = from_row < m && from_column < k;
        cp_async_l2(&stage.a[row][column], inside ? a + from_row * k + from_column : a, inside ? 16 : 0);
    }
    for (int i = threadIdx.x; i < TILE_K * TILE_N / 8; i += THREADS) {
        const int row = i / (TILE_N / 8), column = i % (TILE_N / 8) * 8;
        const int from_row = tile * TILE_K + row, from_column = blockIdx.x * TILE_N + column;
        const bool inside = from_row < k && from_column < n;
        cp_async_l2(&stage.b[row][column], inside ? b + from_row * n + from_column : b, inside ? 16 : 0);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
matmul(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int m, int n, int k) {
    __shared__ Stage stages[2];
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 64 * 32, warp_column = threadIdx.x / 32 % 2 * 32;
    float sums[2][4][4] = {};

    const int tiles = (k + TILE_K - 1) / TILE_K;
    load_stage(stages[0], a, b, m, n, k, 0);
    cp_async_commit();
    for (int tile = 0; tile < tiles; ++tile) {
        if (tile + 1 < tiles) load_stage(stages[(tile + 1) % 2], a, b, m, n, k, tile + 1);
        cp_async_commit();      // empty in the last round, so that the wait below always leaves one group
        cp_async_wait<1>();
        __syncthreads();
        const Stage& stage = stages[tile % 2];
#pragma unroll
        for (int step = 0; step < TILE_K; step += 16) {
            unsigned fragments_a[2][4], fragments_b[2][4];
            // Four matrices at a time: rows 0-7 and 8-15 of the left eight columns, then of the right ones, as mma.sync orders A.
#pragma unroll
            for (int i = 0; i < 2; ++i)
                ldmatrix(fragments_a[i], &stage.a[warp_row + 16 * i + lane % 16][step + lane / 16 * 8]);
            // The same places of B, transposed: the first two registers are one fragment of B, the others that of the next 8 columns.
#pragma unroll
            for (int j = 0; j < 2; ++j)
                ldmatrix_trans(fragments_b[j], &stage.b[step + lane % 16][warp_column + 16 * j + lane / 16 * 8]);
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const unsigned fragment_b[2] = {fragments_b[j / 2][j % 2 * 2], fragments_b[j / 2][j % 2 * 2 + 1]};
                    mma_m16n8k16<__nv_bfloat16>(sums[i][j], fragments_a[i], fragment_b, sums[i][j]);
                }
        }
        __syncthreads();        // everybody has read this stage before the next round fills it
    }

#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = blockIdx.y * TILE_M + warp_row + 16 * i + 8 * half + lane / 4;
                const int column = blockIdx.x * TILE_N + warp_column + 8 * j + lane % 4 * 2;
                if (row < m && column < n)
                    *reinterpret_cast<float2*>(&c[row * n + column]) = make_float2(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
            }
}
