// A weight times a few rows, v2: vectors. A warp a row of the weight, 16 bytes a lane, several of them on their way.
//   Idea      A lane loads 16 bytes at a time and asks for AHEAD of them before it multiplies the first: 512 bytes a warp in one stretch.
//   Predicts  At one row of x the time of reading the weight; for m rows of x m times that, out of L2 where it fits.
//   Measured  data/measured/h200/gemv.csv: 128256 x 2048 252 -> 149 us for one row of x, 1922 -> 1141 for 8; 16384 x 2048, gated, 27.4 -> 25.9
//             and 166 -> 147. 2048 x 2048 and x 8192 are slower from 4 rows on: 8 rows 19.6 -> 24.9, 66.8 -> 79.4.
//   Wastes    Three instructions for each weight and row of x: with 8 rows the FMA units, not memory, are the limit. Each warp starts cold.
#include "naive_sizes.cuh"

// k a multiple of WIDTH, rows of x and w on 16 bytes.
template <class T, class Out, int WIDTH, int AHEAD>
__global__ void gemv_vectors(const T* x, const T* w, const T* norm_weight, const T* residual, Out* y, NaiveSizes sizes) {
    const int column = blockIdx.x * (blockDim.x / 32) + warp_id(), row = blockIdx.y;
    if (column >= sizes.outputs) return;
    const T* const x_row = x + row * sizes.x_stride;
    const int rows_of_w = sizes.gated ? 2 : 1;
    float squares = 0.0f, sum[2] = {};
    for (int which = 0; which < rows_of_w; ++which) {
        const T* const w_row = w + static_cast<long long>(column + which * sizes.outputs) * sizes.k;
        for (int base = WIDTH * lane_id(); base < sizes.k; base += 32 * WIDTH * AHEAD) {
            Vector<T, WIDTH> weights[AHEAD];
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
                const int at = base + 32 * WIDTH * a;
                if (at < sizes.k) weights[a] = *reinterpret_cast<const Vector<T, WIDTH>*>(w_row + at);
            }
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
                const int at = base + 32 * WIDTH * a;
                if (at >= sizes.k) break;
                float values[WIDTH], gains[WIDTH];
                load_vector(x_row + at, values);
                if (norm_weight) load_vector(norm_weight + at, gains);
#pragma unroll
                for (int e = 0; e < WIDTH; ++e) {
                    if (which == 0) squares += values[e] * values[e];
                    sum[which] += (norm_weight ? values[e] * gains[e] : values[e]) * to_float(weights[a].element[e]);
                }
            }
        }
    }
    finish(sum, squares, norm_weight != nullptr, residual, y, row, column, sizes);
}
