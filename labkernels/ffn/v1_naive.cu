// FFN, v1: naive. Three kernels, as the formula has three steps: a product, an activation, another product.
//   Idea      pre = x W1^T + b1; h = act(pre); y = h W2^T + b2. One thread for each element of each, weights lie as nn.Linear keeps them.
//   Predicts  The products are those of v2 of matmul, at best: two loads for a multiply-add. What is this network's own: pre and h, (tokens,
//             ffn), go to memory and come back: 4 * tokens * ffn elements moved that nobody asked for, 0.7 GB in float32 at 4096 x 11008.
//   Measured  data/measured/h200/ffn.csv: 187 ms for 512 tokens, GELU in float32, 1% of the limit.
//   Wastes    That traffic; two launches; and everything that the naive product wastes. Neighbouring threads read neighbouring rows of W.
#include "activation.cuh"

// y (rows, cols) = x (rows, k) w^T + bias, w (cols, k). One thread an element: x is the column, y the row.
template <class T>
__global__ void ffn_linear_naive(const T* x, const T* w, const T* bias, T* y, int rows, int cols, int k, long long x_stride, long long w_stride) {
    const int col = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= rows || col >= cols) return;
    float sum = bias == nullptr ? 0.0f : to_float(bias[col]);
    for (int i = 0; i < k; ++i) sum += to_float(x[row * x_stride + i]) * to_float(w[col * w_stride + i]);
    y[row * static_cast<long long>(cols) + col] = from_float<T>(sum);
}

// h (rows, ffn) = act(pre): of pre (rows, ffn), or, gated, (rows, 2 ffn), gates before ups. One thread an element.
template <class T, int ACTIVATION>
__global__ void ffn_activate_naive(const T* pre, T* h, long long elements, int ffn) {
    const long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    if (i >= elements) return;
    constexpr bool GATED = is_gated(ACTIVATION);
    const long long at = GATED ? i + i / ffn * ffn : i;
    h[i] = from_float<T>(ffn_activate<ACTIVATION, T>(to_float(pre[at]), GATED ? to_float(pre[at + ffn]) : 1.0f));
}
