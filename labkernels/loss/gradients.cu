// The two products of `linear_cross_entropy` v6 that make gradients, of exponentials E that lie in two places: columns up to `split` in `low`, then in `high`.
//   Idea      Both add a tile of sums to what there is, and leave that to the copy engine's reduction (cp.reduce.async.bulk), which adds in L2 while the
//             threads are at the next tile. dweight += E^T x: a chunk's k is short, 512 tokens or eight stages, and a tile of dweight to be read,
//             added to and written would take as long again. dx = E W: 512 x 2048 is 32 tiles for 132 multiprocessors, so k, the vocabulary, is
//             shared out, and four blocks add to a tile in float32.
//   Predicts  dweight: the epilogue of a plain store, 1.6 us beside eight stages of 0.67. dx: 128 of 132 multiprocessors busy to the end.
//   Measured  Each alone is not recorded; all of v6 in exponentials.cu. When it was tuned, TFLOP/s: dx of 512 tokens 775 (cuBLAS 685), of 768
//             768 (675); dweight of 512 tokens 533 (475), of 768 607 (517). Tiles of 128 x 192 in turns make dweight 682, and yet all of v6 was
//             no faster with them.
//   Wastes    A chunk's part of dweight is rounded to T before it is added, and once more after. Floats are added in an order that nobody fixes.
#include "tiles.cuh"

// C (m, n) += E^T B, or = without ADD: E (k, m), B (k, n).
template <class T, bool ADD, int COLUMNS, int LAG>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
add_to_dweight(const __grid_constant__ TensorMap low, const __grid_constant__ TensorMap high, const __grid_constant__ TensorMap b,
               const __grid_constant__ TensorMap c, int m, int n, int k, int split, int band) {
    extern __shared__ __align__(1024) char dynamic[];
    walk_tiles<T, true, true, COLUMNS, LAG>(low, high, b, m, n, k, split, 1, band, dynamic,
                              [&](float(&d)[COLUMNS / 2], int row, int column, char* slabs, int& slab) { put_tile<T, ADD>(c, slabs, slab, d, row, column); });
}

// C (m, n), floats, += E B: E (m, k), B (k, n).
template <class T, int COLUMNS, int LAG>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
add_to_dx(const __grid_constant__ TensorMap low, const __grid_constant__ TensorMap high, const __grid_constant__ TensorMap b,
          const __grid_constant__ TensorMap c, int m, int n, int k, int split, int shares, int band) {
    extern __shared__ __align__(1024) char dynamic[];
    walk_tiles<T, false, true, COLUMNS, LAG>(low, high, b, m, n, k, split, shares, band, dynamic, [&](float(&d)[COLUMNS / 2], int row, int column, char* slabs, int& slab) {
        put_tile<float, true>(c, slabs, slab, d, row, column);
    });
}
