// The activation on its own, and its gradient: what is left between products that do not fuse it.
//
//   ffn_activation            h = act(pre)                                        reads tokens * ffn elements (gated: twice), writes as many once
//   ffn_activation_gradient   dpre = dh * act'(pre), and h = act(pre) once more   one walk over dh and pre gives both that the backward pass needs
//   ffn_column_sums           db = the sums of the columns of a gradient          a block has 64 columns, all rows: the same order each time
//
// Of SwiGLU with s = sigmoid(gate):  dgate = dh * up * s (1 + gate (1 - s)),  dup = dh * gate s,  h = gate s * up.
// All are bound by memory; elements come in vectors of 16 bytes where they lie on them.
#include "activation.cuh"
#include "vector.cuh"

// h (rows, ffn) of pre (rows, ffn), gated (rows, 2 ffn), all dense. A thread has WIDTH neighbours; ffn is a multiple of WIDTH.
template <class T, int ACTIVATION, int WIDTH>
__global__ void __launch_bounds__(256) ffn_activation(const T* pre, T* h, long long elements, int ffn) {
    constexpr bool GATED = is_gated(ACTIVATION);
    const long long i = (blockIdx.x * 256ll + threadIdx.x) * WIDTH;
    if (i >= elements) return;
    const long long at = GATED ? i + i / ffn * ffn : i;
    float x[WIDTH], up[WIDTH], y[WIDTH];
    load_vector(pre + at, x);
    if (GATED) load_vector(pre + at + ffn, up);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) y[j] = ffn_activate<ACTIVATION, T>(x[j], GATED ? up[j] : 1.0f);
    store_vector(h + i, y);
}

// dpre, laid out as pre, and h from dh (rows, ffn) and pre.
template <class T, int ACTIVATION, int WIDTH>
__global__ void __launch_bounds__(256) ffn_activation_gradient(const T* dh, const T* pre, T* dpre, T* h, long long elements, int ffn) {
    constexpr bool GATED = is_gated(ACTIVATION);
    const long long i = (blockIdx.x * 256ll + threadIdx.x) * WIDTH;
    if (i >= elements) return;
    const long long at = GATED ? i + i / ffn * ffn : i;
    float grad[WIDTH], x[WIDTH], up[WIDTH], y[WIDTH];
    load_vector(dh + i, grad);
    load_vector(pre + at, x);
    if (GATED) load_vector(pre + at + ffn, up);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
        const float slope = ffn_slope<ACTIVATION, T>(x[j]);
        if constexpr (GATED) {
            const float silu = activate<ACTIVATION, T>(x[j]);
            y[j] = silu * up[j];
            x[j] = grad[j] * up[j] * slope;
            up[j] = grad[j] * silu;
        } else {
            y[j] = ffn_activate<ACTIVATION, T>(x[j]);
            x[j] = grad[j] * slope;
        }
    }
    store_vector(h + i, y);
    store_vector(dpre + at, x);
    if (GATED) store_vector(dpre + at + ffn, up);
}

// sums (cols) of x (rows, cols), dense rows. Launch blocks of (32, 8) threads, one for 64 columns.
template <class T>
__global__ void __launch_bounds__(256) ffn_column_sums(const T* x, T* sums, int rows, int cols, long long stride) {
    __shared__ float of_row[8][65];
    const int first = blockIdx.x * 64 + threadIdx.x;
    float sum[2] = {};
    for (int row = threadIdx.y; row < rows; row += 8) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            if (first + 32 * i < cols) sum[i] += to_float(x[row * stride + first + 32 * i]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) of_row[threadIdx.y][threadIdx.x + 32 * i] = sum[i];
    __syncthreads();
    const int thread = threadIdx.y * 32 + threadIdx.x, col = blockIdx.x * 64 + thread;
    if (thread >= 64 || col >= cols) return;
    float total = 0.0f;
    for (int i = 0; i < 8; ++i) total += of_row[i][thread];
    sums[col] = from_float<T>(total);
}
