// A weight times a few rows, v1: naive. A warp a row of the weight, a number a lane at a time.
//   Idea      The lanes of a warp take neighbours along k, so that each load of theirs is one stretch of memory, and add up at the end.
//   Predicts  Every weight is read once for each row of x, 2 or 4 bytes a lane: a quarter of the bytes in flight that memory needs.
//   Measured  data/measured/h200/gemv.csv, bfloat16: 128256 x 2048 after a norm 252 us for one row of x, 46% of the limit, and 1922 for 8. Gates
//             and ups of Llama-3.2-1B, 16384 x 2048: 27.4 and 166.
//   Wastes    Loads of 64 bytes a warp where 512 are possible; x once for each row of the weight; the next load waits for the last product.
#include "naive_sizes.cuh"

template <class T, class Out>
__global__ void gemv_naive(const T* x, const T* w, const T* norm_weight, const T* residual, Out* y, NaiveSizes sizes) {
    const int column = blockIdx.x * (blockDim.x / 32) + warp_id(), row = blockIdx.y;
    if (column >= sizes.outputs) return;
    const T* const x_row = x + row * sizes.x_stride;
    float squares = 0.0f, sum[2] = {};
    for (int i = lane_id(); i < sizes.k; i += 32) {
        const float value = to_float(x_row[i]);
        squares += value * value;
        const float scaled = norm_weight ? value * to_float(norm_weight[i]) : value;
        sum[0] += scaled * to_float(w[static_cast<long long>(column) * sizes.k + i]);
        if (sizes.gated) sum[1] += scaled * to_float(w[static_cast<long long>(column + sizes.outputs) * sizes.k + i]);
    }
    finish(sum, squares, norm_weight != nullptr, residual, y, row, column, sizes);
}
