// Residual addition, v2: vectors. VECTORS times 16 bytes of each tensor a thread, loaded before anything is added.
//   Idea      As v2 of SwiGLU: the more bytes on their way, the less of their latency shows. The bias stays in the caches; what is
//             written is marked as not soon needed.
//   Predicts  The time of a copy of as many bytes.
//   Measured  data/measured/h200/residual_add.csv: 16384 x 4096 in bfloat16 257 -> 94.9 us, all of a copy's bandwidth (PyTorch 94.4,
//             torch.compile 94.9); with a bias 258 -> 96.7 (PyTorch's two operations 260, torch.compile 94.9).
//   Wastes    The trip: the addition belongs into the epilogue of the matmul before it, or into the norm after it.
#include "stream.cuh"

// y = x + residual + bias. x and residual (rows, cols), their rows x_row and residual_row elements apart; bias (cols,) or null.
// WIDTH elements are a vector: cols, strides and addresses are multiples of it. `vectors` in all, `row_vectors` of them a row.
template <class T, int WIDTH, int VECTORS>
__global__ void add_vectors(const T* x, const T* residual, const T* bias, T* y, long long vectors, int row_vectors, long long x_row,
                            long long residual_row) {
    const long long first = blockIdx.x * (long long)(blockDim.x * VECTORS) + threadIdx.x;
    float a[VECTORS][WIDTH], b[VECTORS][WIDTH];
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const long long index = first + k * (long long)blockDim.x;
        if (index >= vectors) continue;
        const Place at = place_of<WIDTH>(index, vectors, row_vectors);
        load_vector(x + at.row * x_row + at.col, a[k]);
        load_vector(residual + at.row * residual_row + at.col, b[k]);
    }
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const long long index = first + k * (long long)blockDim.x;
        if (index >= vectors) continue;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) a[k][j] += b[k][j];
        if (bias) {
            load_vector(bias + place_of<WIDTH>(index, vectors, row_vectors).col, b[k]);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) a[k][j] += b[k][j];
        }
        store_streamed(y + index * WIDTH, a[k]);
    }
}
