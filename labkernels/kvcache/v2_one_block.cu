// Decode attention, v2: one block for each head of k and v. It reads every key and value once, for all queries that share them.
//   Idea      Online softmax: a warp walks over tokens with a running maximum, sum and output for each of the group's queries, so that no
//             score goes to memory. A key that is in registers serves the whole group: nothing is read twice, nothing is copied (GQA).
//   Predicts  The bytes of the cache once, by loads that lie beside each other: of a group of 4, a quarter of v1's.
//   Measured  data/measured/h200/decode_attention.csv: 8 sequences of 8192 tokens 4267 -> 1065 us, the quarter that was predicted; 32 of them
//             7537 -> 1141, but one alone takes 1071.
//   Wastes    There are batch * kv_heads blocks. One sequence with 8 heads of k and v keeps 8 of 132 multiprocessors busy, and one of them
//             reads a thirtieth of what memory could give. Five shuffles a score.
#include "rows.cuh"

// Launch with a grid of (kv_heads, batch, ceil(group * queries / ROWS)) and WARPS warps. 32 * VALUES must be at least head_dim.
template <class T, class C, int VALUES, int WIDTH, int ROWS>
__global__ void __launch_bounds__(32 * WARPS)
    decode_one_block(const T* q, const C* k, const C* v, const float* k_scale, const float* v_scale, const int* lengths, const int* block_table, T* out,
                     Problem problem) {
    __shared__ Meeting<VALUES, ROWS> meeting;
    const Sequence sequence(block_table, problem, blockIdx.y, blockIdx.x);
    const int first_row = blockIdx.z * ROWS, rows = problem.rows(), length = lengths[sequence.batch];
    Found<VALUES, ROWS> found;
    walk<VALUES, WIDTH>(found, q, k, v, k_scale, v_scale, sequence, first_row, rows, length, 0, length, problem);

    T* target = out + problem.out_row(sequence.batch, sequence.head, first_row) * problem.head_dim;
    meet(found, meeting, min(ROWS, rows - first_row), problem.head_dim, [&](int row, int d, float, float sum, float undivided) {
        target[row * problem.head_dim + d] = from_float<T>(sum == 0.0f ? 0.0f : undivided / sum);
    });
}
