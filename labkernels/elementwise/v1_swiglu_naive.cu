// SwiGLU activation, v1: naive. y = silu(gate) * up with silu(x) = x / (1 + exp(-x)); one thread makes one element, forward and backward.
//   Idea      The formula as it stands, one element a thread, neighbouring threads on neighbouring elements: every load is coalesced.
//             Against PyTorch's two operations, silu and a product, nothing between them goes to memory and comes back.
//   Predicts  3 elements moved an element, where two operations move 5. But 2 bytes a lane and a load: at 16 bits a warp asks for 64 bytes
//             at a time, and too few bytes are on their way to keep the memory busy.
//   Measured  data/measured/h200/swiglu.csv: 16384 x 11008 in bfloat16 in 940 us, 27% of the limit, yet PyTorch's two operations take 433 for
//             rows that are contiguous and 956 for packed ones. swiglu_backward.csv: 1070 us, 40%.
//   Wastes    7 of 8 load and store instructions; a division of 64 bits an element to find its row.
#include "convert.cuh"

// y = silu(gate) * up. gate and up (rows, cols) with any strides; y (rows, cols) contiguous.
template <class T>
__global__ void swiglu_naive(const T* gate, const T* up, T* y, long long rows, int cols, long long gate_row, long long gate_col,
                             long long up_row, long long up_col) {
    const long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= rows * cols) return;
    const long long row = index / cols, col = index % cols;
    const float g = to_float(gate[row * gate_row + col * gate_col]);
    y[index] = from_float<T>(g / (1.0f + __expf(-g)) * to_float(up[row * up_row + col * up_col]));
}

// The gradients of gate and up from that of y, all three of their rows `grad_row` ... elements apart, columns side by side.
template <class T>
__global__ void swiglu_backward_naive(const T* grad, const T* gate, const T* up, T* grad_gate, T* grad_up, long long rows, int cols,
                                      long long grad_row, long long grad_col, long long gate_row, long long gate_col, long long up_row,
                                      long long up_col, long long out_row) {
    const long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= rows * cols) return;
    const long long row = index / cols, col = index % cols;
    const float dy = to_float(grad[row * grad_row + col * grad_col]), g = to_float(gate[row * gate_row + col * gate_col]);
    const float sigmoid = 1.0f / (1.0f + __expf(-g));
    grad_gate[row * out_row + col] = from_float<T>(dy * to_float(up[row * up_row + col * up_col]) * sigmoid * (1.0f + g * (1.0f - sigmoid)));
    grad_up[row * out_row + col] = from_float<T>(dy * g * sigmoid);
}
