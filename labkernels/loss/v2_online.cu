// Cross-entropy, v2: online. One block a row, 16 bytes a load; one walk finds the maximum and the sum, a second writes the gradient.
//   Idea      The running maximum and sum of softmax v2, for a row of 128256: a thread measures its sum against its own maximum, and looks at the
//             maximum of a vector before it rescales.
//   Predicts  2 reads and 1 write an element. The second read of a row of 256 KB comes right after the first, out of L2: near the time of a copy.
//   Measured  data/measured/h200/cross_entropy.csv: 512 rows of 128256 in bfloat16 2291 -> 128 us, 49% of the limit (torch.compile 204).
//   Wastes    The second read's way through L2, and two exponentials an element.
#include "block.cuh"
#include "row.cuh"
#include "vector.cuh"

// As in v1. With WIDTH > 1 rows lie on multiples of it, and vocab is one.
template <class T, int WIDTH>
__global__ void __launch_bounds__(1024, 1)
cross_entropy_online(const T* logits, long long row_stride, T* gradient, long long gradient_stride, int rows, int vocab, const long long* targets,
                     Options options, const float* scale, int scale_step, float* losses, float* lses) {
    const long long row = blockIdx.x, target = targets[row];
    const bool ignored = target == options.ignore_index, inside = target >= 0 && target < vocab;
    const int first = WIDTH * threadIdx.x, step = WIDTH * blockDim.x;
    logits += row * row_stride;
    if (gradient) gradient += row * gradient_stride;
    if (ignored) {
        const float zeros[WIDTH] = {};
        if (threadIdx.x == 0) losses[row] = 0.0f;
        for (int i = first; gradient && i < vocab; i += step) store_vector(gradient + i, zeros);
        return;
    }

    Statistics s = nothing();
#pragma unroll 4
    for (int i = first; i < vocab; i += step) {
        float value[WIDTH];
        load_vector(logits + i, value);
        Statistics vector = nothing();
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) vector.max = fmaxf(vector.max, value[j]);
        vector.max = fmaxf(vector.max, s.max);
        s.sum *= __expf(s.max - vector.base());
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            s.sum += __expf(value[j] - vector.base());
            s.total += value[j];
        }
        s.max = vector.max;
    }
    const float max = block_max(s.max);
    s.sum = block_sum(s.sum * __expf(s.base() - (max == -CUDART_INF_F ? 0.0f : max)));
    s.total = block_sum(s.total);
    s.max = max;

    const float lse = log_sum_exp(s);
    if (threadIdx.x == 0) {
        losses[row] = loss_of(s, lse, inside ? to_float(logits[target]) : CUDART_NAN_F, vocab, options);
        if (lses) lses[row] = lse;
    }
    if (!gradient) return;
    __syncthreads();  // where both are the same memory, the target's logit has been read
    const Gradient slope(s, lse, vocab, options, inside ? scale[row * scale_step] : CUDART_NAN_F);
#pragma unroll 4
    for (int i = first; i < vocab; i += step) {
        float value[WIDTH];
        load_vector(logits + i, value);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[j] = slope(value[j], i + j == target);
        store_vector(gradient + i, value);
    }
}
