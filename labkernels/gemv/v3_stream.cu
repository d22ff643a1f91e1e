// A weight times a few rows, v3: a stream. Tensor cores take what is read as it comes; k is shared out, and the next tile is always on its way.
//   Idea      v2's lanes spend three instructions a weight, for every row of x once more, and its warps start cold on each row. Here a warp holds
//             AHEAD steps of 16 rows in registers while they come; the warps of a block share k, so that a block is never without a load on
//             its way, from one tile into the next, and mma.sync multiplies up to 8 rows of x at the price of one. See stream.cuh.
//             RMSNorm before it, SwiGLU and the residual behind it cost no trip through memory and no launch.
//             Launched early, it asks for its first weights before the kernel that makes x has ended.
//   Predicts  Gates and ups of Llama-3.2-1B, 16384 x 2048, are 67 MB: 15.4 us at 4350 GB/s. q, k, v, 3072 x 2048: 2.9 us; a launch costs as much.
//   Measured  data/measured/h200/gemv.csv: gates and ups 25.9 -> 21.3 us for one row of x, 147 -> 22.1 for 8 (torch.compile 25.0, 25.2); q, k, v
//             9.7 -> 7.7 (10.1); 128256 x 2048 149 -> 125, 91% of the limit (130). Of 16 rows torch.compile is ahead at 128256 x 2048, 136
//             against 138, at 3072 x 2048, 10.2 against 12.5, and by far at 2048 x 8192, 16.8 against 28.8.
//   Wastes    The way of the first bytes (1 us) where no kernel runs before it that leaves room, and the last tile, which not all SMs have.
#include "epilogues.cuh"
#include "stream.cuh"

// x (m, k), its rows x_stride apart; w (n, k) contiguous, k a multiple of 32, all on 16 bytes; norm_weight (k,) if NORM; residual (m, outputs) or
// null; y (m, outputs), where outputs is n, or n / 2 if GATED. m at most 8 * TILES, or 1 where that is 0. Launch (blocks, splits), in clusters of (1, splits).
template <class T, class Out, bool NORM, bool GATED, int TILES, int WARPS, int SHARE, int AHEAD, int BLOCKS>
__global__ void __launch_bounds__(32 * WARPS, BLOCKS) gemv_stream(const T* x, const T* w, const T* norm_weight, const T* residual, Out* y, Sizes sizes) {
    extern __shared__ __align__(16) unsigned char shared[];
    if constexpr (GATED) {
        stream<Whole<T>, NORM, TILES, WARPS, SHARE, AHEAD>(Gated<T, Out>{residual, y, sizes.n / 2}, x, w, nullptr, nullptr, norm_weight, sizes, shared);
    } else {
        stream<Whole<T>, NORM, TILES, WARPS, SHARE, AHEAD>(Plain<T, Out>{residual, y, sizes.n}, x, w, nullptr, nullptr, norm_weight, sizes, shared);
    }
}
