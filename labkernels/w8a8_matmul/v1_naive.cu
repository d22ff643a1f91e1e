// W8A8 matmul, v1: naive. One thread for each element of the result, which walks along a row of q and a row of the weight.
//   Idea      Both factors are bytes and their sum is an int32, exact whatever the order. What the bytes stand for, a scale of q's row and
//             one of the weight's, is common to all terms, and multiplies the sum once.
//   Predicts  2 bytes for each multiply-add; a warp's lanes read 32 rows of the weight, a sector each for a byte.
//   Measured  data/measured/h200/w8a8_matmul.csv: 1024 x 1024 x 1024 in 4.5 ms.
//   Wastes    Two loads for every multiplication, of a byte each; the tensor cores stand still.
#include "convert.cuh"

// out (m, n), contiguous. q: rows q_stride apart, weight (n, k): rows weight_stride apart. Launch a thread an element: x column, y row.
template <class Out>
__global__ void w8a8_naive(const signed char* q, const signed char* weight, Out* out, int m, int n, int k, long long q_stride,
                           long long weight_stride, const float* scale_q, const float* scale_weight, const Out* bias) {
    const int col = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= m || col >= n) return;
    q += row * q_stride;
    weight += col * weight_stride;
    int sum = 0;
    for (int i = 0; i < k; ++i) sum += q[i] * weight[i];
    float value = static_cast<float>(sum) * (scale_q[row] * scale_weight[col]);
    if (bias != nullptr) value += to_float(bias[col]);
    out[row * (long long)n + col] = from_float<Out>(value);
}
