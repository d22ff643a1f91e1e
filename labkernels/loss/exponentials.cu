// The matmul of `linear_cross_entropy` v6 that makes logits never writes one: out of it come their exponentials.
//   Idea      A gradient of softmax is exp(z - lse): exp(z - shift) with any shift, times a number a row. With the row's target's logit for a shift,
//             which is one dot product, the matmul takes the exponential of its float32 sums itself, and adds them up: the pass over the logits, which
//             read and wrote them all, is gone, and with it their rounding to T. A row's factor goes into x and dx; see rows.cu.
//   Predicts  Two passes over 2.1 GB less at 8192 x 128256, 1.05 ms; for 128 x 256 exponentials a tile, 1.2 us of its 22: 0.3 ms.
//   Measured  data/measured/h200/linear_cross_entropy.csv, 8192 x 2048 x 128256: v4 19.8 ms in 822 MB, torch.compile 19.5 in 2660, eager 21.5 in
//             6304, v6 20.2 in 623: the least memory but v5's, and 2 to 4% slower than both. 1024 tokens 2.32 -> 2.77, 8192 x 4096 x 32000 9.15 ->
//             9.74. When it was tuned, in one process, one run each, it was ahead: v4 21.2, torch.compile 21.3, v6 20.1, and with chunks of 512
//             and 640 20.7 to 22.8. Logits of std 4: gradients err by 1.8e-3 and 2.0e-3 of those of float32 logits, v4's and Liger's by 6.7e-3
//             and 7.1e-3: they round the logits.
//   Wastes    Nobody multiplies in a block while both its warpgroups take exponentials: 646 TFLOP/s at 768 tokens, with one two stages behind the
//             other 719, cuBLAS's plain product 759; in a later run both 720. Tiles taken in turns should have hidden it all, and made 412 to 449:
//             ptxas had serialised their wgmma (C7515), for sums were changed in place. With copies of the sums changed they made 689, of 752.
//
// Where a logit is more than 2^MOST times e to the shift (a loss of 55 and more), the row's shift is to be raised, and the chunk is made AGAIN: that
// launch is always there, and leaves at once where nothing was raised.
#include <math_constants.h>

#include "approx.cuh"
#include "tiles.cuh"

constexpr float LOG2_E = 1.4426950408889634f, MOST = 80.0f;

// exp2(log2(e) x w^T - shift) of x (m, k), w (n, k), as T: columns up to `split` to `low`, from there on to `high`. shifts (m,) in units of log2;
// sums (column tiles, m): those of a row over a tile's columns; raises (m,): what is to be added to a shift; `again`, of the chunk.
template <class T, int COLUMNS, int LAG>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
exponentials(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap low,
             const __grid_constant__ TensorMap high, int m, int n, int k, int split, int band, const float* shifts, float* sums, int* raises, int* again,
             int second) {
    extern __shared__ __align__(1024) char dynamic[];
    if (second && *again == 0) return;
    walk_tiles<T, false, false, COLUMNS, LAG>(x, x, w, m, n, k, k, 1, band, dynamic, [&](float(&d)[COLUMNS / 2], int row, int column, char* slabs, int& slab) {
        const int lane = threadIdx.x % 32, first = row + threadIdx.x % GROUP / 32 * 16 + lane / 4;
        if (column + COLUMNS > n) {
            const int inside = n - column - lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < COLUMNS / 2; ++i) d[i] = i / 4 * 8 + i % 2 < inside ? d[i] : -CUDART_INF_F;
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const bool inside = first + 8 * h < m;
            const float shift = inside ? shifts[first + 8 * h] + (second ? __int_as_float(raises[first + 8 * h]) : 0.0f) : CUDART_INF_F;
            float top = -CUDART_INF_F, sum = 0.0f;
#pragma unroll
            for (int i = 2 * h; i < COLUMNS / 2; i += 4) {
#pragma unroll
                for (int j = i; j < i + 2; ++j) {
                    const float exponent = __fmaf_rn(d[j], LOG2_E, -shift);
                    top = fmaxf(top, exponent);
                    d[j] = exp2_approx(exponent);
                    sum += d[j];
                }
            }
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            if (lane % 4 == 0 && inside) sums[static_cast<long long>(column / COLUMNS) * m + first + 8 * h] = sum;
            if (!second && top > MOST && inside) {
                atomicMax(&raises[first + 8 * h], __float_as_int(top));  // positive floats are in the order of their bits
                atomicExch(again, 1);
            }
        }
        const TensorMap& out = column < split ? low : high;
        const int of_out = column < split ? column : column - split;
        put_tile<T, false>(out, slabs, slab, d, row, of_out);
    });
}

// Of rows whose lse is known, here in units of log2: scale * exp(z - lse), the gradient but for the target's part. scales has one number or one a row.
template <class T, int COLUMNS, int LAG>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
probabilities(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap out, int m, int n, int k, int band,
              const float* lses, const float* scales, int scale_step) {
    extern __shared__ __align__(1024) char dynamic[];
    walk_tiles<T, false, false, COLUMNS, LAG>(x, x, w, m, n, k, k, 1, band, dynamic, [&](float(&d)[COLUMNS / 2], int row, int column, char* slabs, int& slab) {
        const int first = row + threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
        float lse[2], scale[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const bool inside = first + 8 * h < m;
            lse[h] = inside ? lses[first + 8 * h] : 0.0f;
            scale[h] = inside ? scales[(first + 8 * h) * scale_step] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < COLUMNS / 2; ++i) d[i] = scale[i / 2 % 2] * exp2_approx(__fmaf_rn(d[i], LOG2_E, -lse[i / 2 % 2]));
        put_tile<T, false>(out, slabs, slab, d, row, column);
    });
}
