// What v1 and v2 share: their sizes, and how a warp's sums become one number of y.
#pragma once
#include "convert.cuh"
#include "epilogues.cuh"
#include "vector.cuh"
#include "warp.cuh"

struct NaiveSizes {
    int k, outputs, gated;
    float eps;
    long long x_stride;  // elements
};

// All lanes call. `sum` of the row of the weight, and of its up if gated.
template <class T, class Out>
__device__ void finish(float (&sum)[2], float squares, bool norm, const T* residual, Out* y, int row, int column, const NaiveSizes& sizes) {
    const float scale = norm ? rsqrtf(warp_sum(squares) / sizes.k + sizes.eps) : 1.0f;
    float value = warp_sum(sum[0]) * scale;
    if (sizes.gated) value = silu(value) * (warp_sum(sum[1]) * scale);
    if (lane_id() > 0) return;
    const long long at = static_cast<long long>(row) * sizes.outputs + column;
    y[at] = from_float<Out>(residual ? value + to_float(residual[at]) : value);
}
