// Rows of act(pre), or of x itself, as 8-bit floats with a scale each: what stands before and between the products of an FFN in fp8.
//   Idea      The scale brings a row's largest number to 448, float8's largest. It must be known before the first number is written, so a block
//             walks over its row twice; the second time the row comes from L2, and the activation is worked out again.
//   Predicts  One read of pre and a quarter (SwiGLU) or half of it written: 0.23 GB at 4096 x 11008, 60 us beside 0.75 ms of products.
//   Measured  data/measured/h200/ffn_fp8.csv: 0.90 ms for all of a SwiGLU network at 4096 tokens; 1.57 with torch._scaled_mm and PyTorch's own
//             steps between.
//   Wastes    The trip of pre through memory. In the product's epilogue a tile does not know its rows' largest numbers.
#include "activation.cuh"
#include "block.cuh"
#include "pack.cuh"
#include "vector.cuh"

// values (rows, cols), scales (rows,): x = scale * value. ACTIVATION 0: of x (rows, cols) itself; gated: of x (rows, 2 cols), gates before ups.
// One block of 256 threads a row; cols and x_stride are multiples of 8, rows lie on 16 bytes.
template <class T, int ACTIVATION>
__global__ void __launch_bounds__(256) ffn_quantise(const T* x, unsigned char* values, float* scales, int cols, long long x_stride) {
    constexpr bool GATED = is_gated(ACTIVATION);
    const int row = blockIdx.x;
    x += row * x_stride;
    values += row * static_cast<long long>(cols);
    const auto activated = [&](int at, float(&y)[8]) {
        load_vector(x + at, y);
        if constexpr (GATED) {
            float up[8];
            load_vector(x + cols + at, up);
#pragma unroll
            for (int i = 0; i < 8; ++i) y[i] = ffn_activate<ACTIVATION, T>(y[i], up[i]);
        } else if constexpr (ACTIVATION > 0) {
#pragma unroll
            for (int i = 0; i < 8; ++i) y[i] = ffn_activate<ACTIVATION, T>(y[i]);
        }
    };
    float largest = 0.0f, y[8];
    for (int at = 8 * threadIdx.x; at < cols; at += 8 * 256) {
        activated(at, y);
#pragma unroll
        for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(y[i]));
    }
    largest = fmaxf(block_max(largest), 1e-30f);
    const float factor = 448.0f / largest;
    if (threadIdx.x == 0) scales[row] = largest / 448.0f;
    for (int at = 8 * threadIdx.x; at < cols; at += 8 * 256) {
        activated(at, y);
#pragma unroll
        for (int i = 0; i < 8; ++i) y[i] *= factor;
        *reinterpret_cast<uint2*>(values + at) = make_uint2(pack_e4m3x4(y[0], y[1], y[2], y[3]), pack_e4m3x4(y[4], y[5], y[6], y[7]));
    }
}
