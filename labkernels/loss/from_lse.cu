// The gradient of a part of a row of logits whose log(sum(exp)) is known already: no sum, one read and one write in the same place.
#include "row.cuh"
#include "vector.cuh"

// A block a row; the part is of `some` tokens, from `first` of `vocab` on.
template <class T, int WIDTH>
__global__ void gradient_from_lse(T* logits, long long row_stride, int some, int first, int vocab, const long long* targets, Options options,
                                  const float* scale, int scale_step, const float* lses) {
    const long long row = blockIdx.x, target = targets[row];
    const bool ignored = target == options.ignore_index, inside = target >= 0 && target < vocab;
    const Gradient slope(nothing(), lses[row], vocab, options, inside ? scale[row * scale_step] : CUDART_NAN_F);
    logits += row * row_stride;
    for (int i = WIDTH * threadIdx.x; i < some; i += WIDTH * blockDim.x) {
        float value[WIDTH];
        load_vector(logits + i, value);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[j] = ignored ? 0.0f : slope(value[j], first + i + j == target);
        store_vector(logits + i, value);
    }
}
