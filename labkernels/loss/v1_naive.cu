// Cross-entropy, v1: three walks. One warp a row: the maximum, the sum, the gradient.
//   Idea      The loss needs one number of a row, log(sum(exp(z))), and the gradient is softmax minus 1 at the target: nothing but softmax, and so
//             what softmax v1 does.
//   Predicts  3 reads and 1 write an element, one warp for 128256 logits: far from the bandwidth where rows are few.
//   Measured  data/measured/h200/cross_entropy.csv: 512 rows of 128256 in bfloat16 in 2.3 ms, 3% of the limit; 256 rows take as long.
//   Wastes    Two of the three reads, 2 bytes a load where 16 are possible, and all lanes but 32 of a multiprocessor where rows are few.
#include "row.cuh"
#include "warp.cuh"

// losses (rows,), gradient (rows, vocab) of logits (rows, vocab), which may be the same memory; gradient may be null. scale has one number for
// all rows (scale_step 0) or one a row (1).
template <class T>
__global__ void cross_entropy_naive(const T* logits, long long row_stride, T* gradient, long long gradient_stride, int rows, int vocab,
                                    const long long* targets, Options options, const float* scale, int scale_step, float* losses) {
    const long long row = blockIdx.x * (blockDim.x / 32LL) + warp_id();
    if (row >= rows) return;
    logits += row * row_stride;
    const long long target = targets[row];
    const bool ignored = target == options.ignore_index;

    Statistics s = nothing();
    for (int i = lane_id(); i < vocab; i += 32) {
        s.max = fmaxf(s.max, to_float(logits[i]));
        s.total += to_float(logits[i]);
    }
    s.max = warp_max(s.max);
    for (int i = lane_id(); i < vocab; i += 32) s.sum += __expf(to_float(logits[i]) - s.base());
    s.sum = warp_sum(s.sum);
    s.total = warp_sum(s.total);

    const bool inside = target >= 0 && target < vocab;
    const float lse = log_sum_exp(s), at_target = inside ? to_float(logits[target]) : CUDART_NAN_F;
    if (lane_id() == 0) losses[row] = ignored ? 0.0f : loss_of(s, lse, at_target, vocab, options);
    if (!gradient) return;
    gradient += row * gradient_stride;
    __syncwarp();  // where both are the same memory, the target's logit has been read
    const Gradient slope(s, lse, vocab, options, inside ? scale[row * scale_step] : CUDART_NAN_F);
    for (int i = lane_id(); i < vocab; i += 32) gradient[i] = from_float<T>(ignored ? 0.0f : slope(to_float(logits[i]), i == target));
}
