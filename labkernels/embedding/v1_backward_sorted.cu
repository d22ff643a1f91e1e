// Embedding backward, v1: sorted. Tokens are sorted, the order of equal ones kept; one thread sums one column of one row of the result.
//   Idea      Row t of the gradient is the sum of the gradients of all places where token t stands. Atomic additions would be simple, and
//             give other bits each time, as their order is left to chance. Sorted, a token's places are neighbours, in order: its sum is a
//             loop. Where they begin is found by bisection; most rows of the vocabulary have none, and are written as zeros.
//   Predicts  The result written once and each gradient read once, but 2 bytes a lane, and 15 dependent steps of bisection a thread.
//   Measured  data/measured/h200/embedding_backward.csv: 16384 tokens, a vocabulary of 128256, rows of 2048: 2766 us, 5% of the limit; PyTorch
//             733.
//   Wastes    The bisection, repeated by every thread of a row; the sort, several launches; a frequent token's column is one thread's work.
#include "convert.cuh"
#include "sorted_tokens.cuh"

// out (vocab, cols) contiguous: row t is the sum of grad's rows order[i] for which sorted[i] = t, in order, as float32.
// grad (n, cols) with any strides; sorted and order (n,) as a stable sort of the tokens gives them.
template <class T>
__global__ void embedding_backward_sorted(const T* grad, const void* sorted, bool wide, const long long* order, T* out, int n,
                                          long long vocab, int cols, long long grad_row, long long grad_col, long long padding_token) {
    const long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= vocab * cols) return;
    const long long token = index / cols, col = index % cols;
    float sum = 0.0f;
    if (token != padding_token) {
        for (int i = first_at_least(sorted, wide, n, token); i < n && index_at(sorted, wide, i) == token; ++i)
            sum += to_float(grad[order[i] * grad_row + col * grad_col]);
    }
    out[index] = from_float<T>(sum);
}
