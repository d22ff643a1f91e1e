// Scaled masked softmax, v1: naive. One warp owns a row of scores and walks over it three times: the maximum, the sum, the result.
//   Idea      scale * x + mask, the mask applied where the score is read and never stored. A hidden key has probability 0; a row of which
//             nothing may be seen becomes zeros, as attention's do, and not NaN.
//   Predicts  3 reads and 1 write an element; PyTorch's scale, mask and softmax read 3 times and write 3 times.
//   Measured  data/measured/h200/masked_softmax.csv: 32 x 4096 x 4096 in bfloat16 with padding in 2023 us, 25% of the limit; PyTorch's three
//             operations 4713.
//   Wastes    Two of the three reads; 2 bytes a lane and a load.
#include <math_constants.h>

#include "score.cuh"
#include "warp.cuh"

// y = softmax(scale * x + mask) of each row. x (batch, heads, queries, keys), strides x_at, keys side by side; y contiguous.
template <class T>
__global__ void masked_softmax_naive(const T* x, const void* mask, T* y, long long rows, int heads, int queries, int keys, float scale,
                                     int causal, RowStrides x_at, MaskLayout mask_at) {
    const long long row = blockIdx.x * (blockDim.x / 32LL) + warp_id();
    if (row >= rows) return;
    const ScoreRow at = score_row(row, heads, queries, keys, causal, mask_at);
    x += at.batch * x_at.batch + at.head * x_at.head + at.query * x_at.query;
    y += row * keys;

    float max = -CUDART_INF_F;
    for (int key = lane_id(); key < keys; key += 32) max = fmaxf(max, masked_score<T>(to_float(x[key]), mask, mask_at, at, key, scale));
    max = warp_max(max);
    const float base = max == -CUDART_INF_F ? 0.0f : max;

    float sum = 0.0f;
    for (int key = lane_id(); key < keys; key += 32) sum += __expf(masked_score<T>(to_float(x[key]), mask, mask_at, at, key, scale) - base);
    sum = warp_sum(sum);
    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (int key = lane_id(); key < keys; key += 32)
        y[key] = from_float<T>(__expf(masked_score<T>(to_float(x[key]), mask, mask_at, at, key, scale) - base) * factor);
}
