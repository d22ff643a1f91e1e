// SwiGLU activation, v2: vectors. A thread moves VECTORS times 16 bytes of each tensor, all of its loads under way before it computes.
//   Idea      Bandwidth times latency is what must be on its way: 4.3 TB/s x 0.8 us = 3.4 MB, 26 KB for each of 132 SMs. 16 bytes of gate
//             and 16 of up a thread and vector are more than that already at half of the threads an SM can hold. What is written is
//             marked as not soon needed, so that it leaves the caches first. Packed projections [gate | up] are two views
//             of one tensor: rows further apart.
//   Predicts  The time of a copy of as many bytes, or less: two thirds of them are reads.
//   Measured  data/measured/h200/swiglu.csv: 16384 x 11008 in bfloat16 940 -> 248 us, 103% of a copy's bandwidth (torch.compile 249, Liger 251;
//             of packed projections 1078, as it copies them first). swiglu_backward.csv: 1070 -> 420 us (torch.compile 419, Liger 794). 256 rows:
//             7.3 us, 6.8 to 7.5.
//   Wastes    The trip itself: fused into the matmul that makes gate and up, nothing of this would be read (lk.nn.FusedFFN).
#include "stream.cuh"

// y = silu(gate) * up. gate and up (rows, cols), their rows gate_row and up_row elements apart; y (rows, cols) contiguous.
// WIDTH elements are a vector: cols, strides and addresses are multiples of it. `vectors` in all, `row_vectors` of them a row.
template <class T, int WIDTH, int VECTORS>
__global__ void swiglu_vectors(const T* gate, const T* up, T* y, long long vectors, int row_vectors, long long gate_row, long long up_row) {
    const long long first = blockIdx.x * (long long)(blockDim.x * VECTORS) + threadIdx.x;
    float g[VECTORS][WIDTH], u[VECTORS][WIDTH];
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const long long index = first + k * (long long)blockDim.x;
        if (index >= vectors) continue;
        const Place at = place_of<WIDTH>(index, vectors, row_vectors);
        load_vector(gate + at.row * gate_row + at.col, g[k]);
        load_vector(up + at.row * up_row + at.col, u[k]);
    }
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const long long index = first + k * (long long)blockDim.x;
        if (index >= vectors) continue;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) u[k][j] *= __fdividef(g[k][j], 1.0f + __expf(-g[k][j]));
        store_streamed(y + index * WIDTH, u[k]);
    }
}

// The gradients of gate and up, their rows out_row elements apart, from grad (rows, cols), its rows grad_row apart.
template <class T, int WIDTH, int VECTORS>
__global__ void swiglu_backward_vectors(const T* grad, const T* gate, const T* up, T* grad_gate, T* grad_up, long long vectors,
                                        int row_vectors, long long grad_row, long long gate_row, long long up_row, long long out_row) {
    const long long first = blockIdx.x * (long long)(blockDim.x * VECTORS) + threadIdx.x;
    float dy[VECTORS][WIDTH], g[VECTORS][WIDTH], u[VECTORS][WIDTH];
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const long long index = first + k * (long long)blockDim.x;
        if (index >= vectors) continue;
        const Place at = place_of<WIDTH>(index, vectors, row_vectors);
        load_vector(grad + at.row * grad_row + at.col, dy[k]);
        load_vector(gate + at.row * gate_row + at.col, g[k]);
        load_vector(up + at.row * up_row + at.col, u[k]);
    }
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const long long index = first + k * (long long)blockDim.x;
        if (index >= vectors) continue;
        const Place at = place_of<WIDTH>(index, vectors, row_vectors);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            const float sigmoid = __fdividef(1.0f, 1.0f + __expf(-g[k][j]));
            u[k][j] *= dy[k][j] * sigmoid * (1.0f + g[k][j] * (1.0f - sigmoid));
            g[k][j] *= dy[k][j] * sigmoid;
        }
        store_streamed(grad_gate + at.row * out_row + at.col, u[k]);
        store_streamed(grad_up + at.row * out_row + at.col, g[k]);
    }
}
