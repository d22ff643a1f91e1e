// W8A8 matmul, v2: tensor cores. mma.sync multiplies 16 x 32 by 32 x 8 bytes in one instruction, on every GPU since Ampere (sm_80).
//   Idea      A block owns 128 x 128 of the result, each of its four warps 64 x 64. Tiles of 128 bytes of k come by cp.async, three stages
//             deep; ldmatrix was made for 8 x 8 matrices of 16 bits, but moves rows of 16 bytes, and so fits bytes as well.
//   Predicts  A stage is 32 KB for 128 x 128 x 128 multiply-adds: 64 to each byte. A warp's fragments are read from shared memory at 8 KB a
//             step of 32, for 32 mma.
//   Measured  data/measured/h200/w8a8_matmul.csv: 4096 x 4096 x 11008 in 564 us; cuBLAS in bfloat16 456, PyTorch's _int_mm with what must be
//             around it 1083.
//   Wastes    On Hopper mma.sync reaches about half of what wgmma does: fragments pass through registers.
#include "vector.cuh"
#include "cp_async.cuh"
#include "ldmatrix.cuh"
#include "mma.cuh"

constexpr int TILE = 128, WARP = 64, DEPTH = 128, STEPS = DEPTH / 32, THREADS = 128, TILE_BYTES = TILE * DEPTH;

// Where piece `piece` (16 bytes) of a row lies in a tile: rows of 128 bytes, pieces exchanged so that 8 rows of a column hit all banks.
__device__ __forceinline__ int place(int row, int piece) { return row * DEPTH + ((piece ^ row % 8) << 4); }

// out (m, n), contiguous. q (m, k) and weight (n, k): rows on multiples of 16 bytes, k a multiple of 16. Launch
// ceil(m / 128) * ceil(n / 128) blocks of 128 threads with STAGES * 32 KB of shared memory; they go down 16 tiles, then to the right.
template <class Out, int STAGES>
__global__ void __launch_bounds__(THREADS, 2)
    w8a8_tensor_cores(const signed char* q, const signed char* weight, Out* out, int m, int n, int k, long long q_stride,
                      long long weight_stride, const float* scale_q, const float* scale_weight, const Out* bias) {
    extern __shared__ __align__(128) unsigned char stages[];
    const int rows = (m + TILE - 1) / TILE, columns = (n + TILE - 1) / TILE, in_band = 16 * columns;
    const int first = blockIdx.x / in_band * 16, height = min(16, rows - first);
    const int block_row = (first + blockIdx.x % in_band % height) * TILE, block_col = blockIdx.x % in_band / height * TILE;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 % 2 * WARP, warp_col = threadIdx.x / 64 * WARP;

    // Each thread copies a piece of every 16th row of both tiles.
    const int piece = threadIdx.x % 8, row = threadIdx.x / 8;
    const auto copy = [&](int stage, int depth) {
        unsigned char* const to = stages + stage * 2 * TILE_BYTES;
        const bool inside = depth + 16 * piece < k;
#pragma unroll
        for (int r = 0; r < TILE; r += THREADS / 8) {
            const bool in_q = inside && block_row + row + r < m, in_weight = inside && block_col + row + r < n;
            cp_async_l2_if(in_q, to + place(row + r, piece), in_q ? q + (block_row + row + r) * q_stride + depth + 16 * piece : q);
            cp_async_l2_if(in_weight, to + TILE_BYTES + place(row + r, piece),
                           in_weight ? weight + (block_col + row + r) * weight_stride + depth + 16 * piece : weight);
        }
    };
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s * DEPTH < k) copy(s, s * DEPTH);
        cp_async_commit();
    }

    int sums[WARP / 16][WARP / 8][4] = {};
    int stage = 0;
    for (int depth = 0; depth < k; depth += DEPTH) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // this stage has come, and all have read the one before
        const int next = depth + (STAGES - 1) * DEPTH;
        if (next < k) copy((stage + STAGES - 1) % STAGES, next);
        cp_async_commit();
        const unsigned char* const tile_a = stages + stage * 2 * TILE_BYTES;
        const unsigned char* const tile_b = tile_a + TILE_BYTES;
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            unsigned a[WARP / 16][4], b[WARP / 16][4];
#pragma unroll
            for (int i = 0; i < WARP / 16; ++i) ldmatrix(a[i], tile_a + place(warp_row + 16 * i + lane % 16, 2 * step + lane / 16));
#pragma unroll
            for (int j = 0; j < WARP / 16; ++j)
                ldmatrix(b[j], tile_b + place(warp_col + 16 * j + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < WARP / 16; ++i)
#pragma unroll
                for (int j = 0; j < WARP / 8; ++j) {
                    const unsigned pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                    mma_m16n8k32<signed char>(sums[i][j], a[i], pair, sums[i][j]);
                }
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    cp_async_wait_all();

#pragma unroll
    for (int j = 0; j < WARP / 8; ++j) {
        const int col = block_col + warp_col + 8 * j + lane % 4 * 2;
        float scale[2], added[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            scale[e] = col + e < n ? scale_weight[col + e] : 0.0f;
            added[e] = bias != nullptr && col + e < n ? to_float(bias[col + e]) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < WARP / 16; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int to_row = block_row + warp_row + 16 * i + lane / 4 + 8 * half;
                if (to_row >= m) continue;
                const float scale_row = scale_q[to_row];
                Vector<Out, 2> pair;
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    pair.element[e] = from_float<Out>(static_cast<float>(sums[i][j][2 * half + e]) * (scale_row * scale[e]) + added[e]);
                Out* const to = out + to_row * (long long)n + col;
                if (n % 2 == 0 && col < n) *reinterpret_cast<Vector<Out, 2>*>(to) = pair;
                else
                    for (int e = 0; e < 2; ++e)
                        if (col + e < n) to[e] = pair.element[e];
            }
    }
}
