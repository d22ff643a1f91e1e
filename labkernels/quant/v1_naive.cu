// Quantised matmul, v1: dequantise, then multiply. One thread owns one element of the result and walks along a row of the weight.
//   Idea      w[row, col] = scale * (q - zero): take the number out of its word, make it a float, multiply, add. Every scheme is a
//             line of code, and the weight never exists in 16 bits anywhere.
//   Predicts  A quarter of a bf16 weight's bytes, and nothing of that to be seen: neighbouring threads read rows k / 2 bytes apart, so
//             a sector of 32 bytes is fetched for each word of 4; and a dozen instructions a number.
//   Measured  data/measured/h200/quant_matmul.csv: one row of x, 11008 x 4096 in int4: 427 us (cuBLAS with a bf16 weight 27.3).
//   Wastes    Almost all bandwidth; and every output row of x reads the whole weight again.
#include <cuda_fp8.h>

#include "convert.cuh"

enum Scheme { INT4, CODEBOOK, INT8, FP8 };

// Which nibble of a word holds k = 0 .. 7 of its eight: formats.py's order.
__device__ inline unsigned nibble(unsigned word, int k) { return word >> 4 * (k % 2 * 4 + k / 2) & 15; }

// y = x w^T. x: (m, k), rows x_stride elements apart; y: (m, n), dense; packed: n rows of row_bytes; scales and codebook as in formats.py.
template <class T, int SCHEME>
__global__ void quant_matmul_naive(const T* x, const void* words, const void* scales, const float* codebook, T* y, int m, int n,
                                   int k, long long x_stride, long long row_bytes, int group) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x, of_x = blockIdx.y;  // a row of the weight, a row of x
    if (row >= n) return;
    const unsigned char* packed = static_cast<const unsigned char*>(words) + row * row_bytes;
    x += of_x * x_stride;

    float sum = 0.0f;
    for (int col = 0; col < k; ++col) {
        float weight;
        if (SCHEME == INT8) weight = static_cast<signed char>(packed[col]) * static_cast<const float*>(scales)[row];
        if (SCHEME == FP8) {
            __nv_fp8_e4m3 number;
            number.__x = packed[col];
            weight = static_cast<float>(number) * static_cast<const float*>(scales)[row];
        }
        if (SCHEME == INT4 || SCHEME == CODEBOOK) {
            const unsigned q = nibble(reinterpret_cast<const unsigned*>(packed)[col / 8], col % 8);
            const __nv_bfloat16* of_groups = static_cast<const __nv_bfloat16*>(scales);
            const long long place = static_cast<long long>(col / group) * n + row;
            weight = SCHEME == INT4 ? (q - to_float(of_groups[2 * place + 1])) * to_float(of_groups[2 * place])
                                    : codebook[q] * to_float(of_groups[place]);
        }
        sum += to_float(x[col]) * weight;
    }
    y[static_cast<long long>(of_x) * n + row] = from_float<T>(sum);
}
