// Embedding backward, v2: rows. One launch finds where every token's places begin, a bisection a thread; then a warp sums a row of the result,
// 16 bytes a lane.
//   Idea      A bisection is 15 loads one after the other. All at once, a thread each, they take the time of one, and not that of one for every
//             element. Most rows have no place: their zeros are written 16 bytes at a time. A row with few places is summed by one warp, FLIGHT
//             of them on their way at once; one with many by all 8 warps, each a contiguous share, whose sums are then added in order. So the
//             bits are the same each time. Nearly all bytes are zeros that are written: blocks that run at the same time have neighbouring rows,
//             and all columns of them, so that memory is written in long pieces. And so frequent tokens, whose numbers are often neighbours too,
//             are not all one block's.
//   Predicts  The time of the bytes, and that of the sort before it.
//   Measured  data/measured/h200/embedding_backward.csv: 16384 tokens, a vocabulary of 128256, rows of 2048: 2766 -> 263 us, 53% of the limit.
//   Wastes    A sort of 64-bit numbers, of which 17 bits count: 8 passes where 2 would do.
#include "raw_vector.cuh"
#include "sorted_tokens.cuh"
#include "warp.cuh"

constexpr int ROWS = 32, WARPS = 8, FLIGHT = 4, SLICES = 2, MANY = 32;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int BLOCKS = 3;  // a multiprocessor; sm_80's code needs more registers than four would leave
#else
constexpr int BLOCKS = 4;
#endif

// begins[t] = how many of n sorted tokens are smaller than t, for t = 0 ... vocab.
__global__ void find_begins(const void* sorted, bool wide, int* begins, int n, long long vocab) {
    const long long token = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (token <= vocab) begins[token] = first_at_least(sorted, wide, n, token);
}

// Adds the rows order[begin] ... order[end - 1] of grad, columns col + slice * 32 * WIDTH ..., to sum, in order.
template <class T, int WIDTH>
__device__ void add_places(const T* grad, const void* order, bool wide, int begin, int end, int col, int cols, long long grad_row,
                           float (&sum)[SLICES][WIDTH]) {
    for (int i = begin; i < end; i += FLIGHT) {
        Raw<T, WIDTH> value[FLIGHT][SLICES] = {};
        long long row[FLIGHT];
#pragma unroll
        for (int f = 0; f < FLIGHT; ++f) row[f] = i + f < end ? index_at(order, wide, i + f) : -1;
#pragma unroll
        for (int f = 0; f < FLIGHT; ++f) {
#pragma unroll
            for (int s = 0; s < SLICES; ++s) {
                const int at = col + s * 32 * WIDTH;
                if (row[f] >= 0 && at < cols) value[f][s] = read_raw<WIDTH>(grad + row[f] * grad_row + at);
            }
        }
#pragma unroll
        for (int f = 0; f < FLIGHT; ++f) {
#pragma unroll
            for (int s = 0; s < SLICES; ++s) {
                float element[WIDTH];
                unpack<T, WIDTH>(value[f][s], element);
#pragma unroll
                for (int e = 0; e < WIDTH; ++e) sum[s][e] += element[e];
            }
        }
    }
}

// out (vocab, cols) contiguous: row t is the sum of grad's rows order[begins[t]] ... order[begins[t + 1] - 1], as float32. grad (n, cols), its
// rows grad_row elements apart; order int64 if `wide`, else int32. cols, strides and addresses are multiples of WIDTH.
// Launch ceil(vocab / ROWS) * slices blocks: block i has columns 32 * WIDTH * SLICES * (i % slices) ..., and every (gridDim.x / slices)-th row.
template <class T, int WIDTH>
__global__ void __launch_bounds__(32 * WARPS, BLOCKS)  // without this the compiler saves registers and has one load under way
embedding_backward_rows(const T* grad, const int* begins, const void* order, bool wide, T* out, long long vocab, int cols,
                        long long grad_row, long long padding_token, int slices) {
    __shared__ int begin_of[ROWS], count_of[ROWS];
    __shared__ unsigned with_many;
    __shared__ float partial[WARPS][SLICES * WIDTH][32];
    const long long stride = gridDim.x / slices, first_row = blockIdx.x / slices;
    const int col = (blockIdx.x % slices * SLICES * 32 + lane_id()) * WIDTH;
    if (threadIdx.x < ROWS) {
        const long long row = first_row + threadIdx.x * stride;
        const bool summed = row < vocab && row != padding_token;
        const int begin = summed ? begins[row] : 0, count = summed ? begins[row + 1] - begin : 0;
        begin_of[threadIdx.x] = begin, count_of[threadIdx.x] = count;
        const unsigned many = __ballot_sync(FULL_WARP, count > MANY);
        if (threadIdx.x == 0) with_many = many;
    }
    __syncthreads();
    const auto write = [&](long long row, const float(&sum)[SLICES][WIDTH]) {
#pragma unroll
        for (int s = 0; s < SLICES; ++s)
            if (col + s * 32 * WIDTH < cols) store_vector(out + row * cols + col + s * 32 * WIDTH, sum[s]);
    };

    for (int r = warp_id(); r < ROWS; r += WARPS) {
        const long long row = first_row + r * stride;
        if (row >= vocab || count_of[r] > MANY) continue;
        float sum[SLICES][WIDTH] = {};
        if (count_of[r] > 0) add_places(grad, order, wide, begin_of[r], begin_of[r] + count_of[r], col, cols, grad_row, sum);
        write(row, sum);
    }
    for (unsigned left = with_many; left; left &= left - 1) {  // for all warps together
        const int r = __ffs(left) - 1, begin = begin_of[r], count = count_of[r];
        const int share = (count + WARPS - 1) / WARPS, mine = min(begin + warp_id() * share, begin + count);
        float sum[SLICES][WIDTH] = {};
        add_places(grad, order, wide, mine, min(mine + share, begin + count), col, cols, grad_row, sum);
#pragma unroll
        for (int i = 0; i < SLICES * WIDTH; ++i) partial[warp_id()][i][lane_id()] = sum[i / WIDTH][i % WIDTH];
        __syncthreads();
        if (warp_id() == 0) {
#pragma unroll
            for (int i = 0; i < SLICES * WIDTH; ++i) {
                float total = 0.0f;
#pragma unroll
                for (int w = 0; w < WARPS; ++w) total += partial[w][i][lane_id()];
                sum[i / WIDTH][i % WIDTH] = total;
            }
            write(first_row + r * stride, sum);
        }
        __syncthreads();
    }
}
