// Decode attention, v3: split (flash decoding). Several blocks share the tokens of one head; a second kernel merges what they found.
//   Idea      Two softmaxes merge like two running ones: each part hands over its largest score, its sum and its undivided output, and
//             exp2(its maximum - the common one) makes them comparable. So tokens can be dealt out to as many blocks as the GPU has room for.
//   Predicts  All multiprocessors read: one sequence goes as fast as sixteen. The parts cost head_dim + 2 floats for each split and row, a
//             thousandth of the cache at 1000 tokens a split; the second launch costs a few microseconds, which short sequences feel.
//   Measured  data/measured/h200/decode_attention.csv: one sequence of 8192 tokens 1071 -> 57.0 us, 8 of them 1065 -> 377. 32 give v2 blocks
//             enough: 1141 -> 1128, 21% of the limit.
//   Wastes    That launch. Splits are cut by the cache's capacity, for the host does not know the lengths: where sequences differ, blocks of
//             the short ones have nothing to do. Five shuffles a score: at 2 bytes an element the arithmetic begins to be the limit.
#include "block.cuh"
#include "rows.cuh"

// Where the parts of one row lie: (splits, rows of all heads and sequences, head_dim + 2), the largest score and the sum last.
__device__ float* part_of(float* parts, int split, long long row, long long all_rows, int head_dim) {
    return parts + (split * all_rows + row) * (head_dim + 2);
}

// Launch with a grid of (kv_heads * splits, batch, ceil(group * queries / ROWS)) and WARPS warps.
template <class T, class C, int VALUES, int WIDTH, int ROWS>
__global__ void __launch_bounds__(32 * WARPS)
    decode_split(const T* q, const C* k, const C* v, const float* k_scale, const float* v_scale, const int* lengths, const int* block_table, float* parts,
                 int split_tokens, Problem problem) {
    __shared__ Meeting<VALUES, ROWS> meeting;
    const int split = blockIdx.x / problem.kv_heads, head_dim = problem.head_dim;
    const Sequence sequence(block_table, problem, blockIdx.y, blockIdx.x % problem.kv_heads);
    const int first_row = blockIdx.z * ROWS, rows = problem.rows(), length = lengths[sequence.batch];
    const int first = split * split_tokens, end = min(length, first + split_tokens);
    if (split > 0 && first >= length) return;
    Found<VALUES, ROWS> found;
    walk<VALUES, WIDTH>(found, q, k, v, k_scale, v_scale, sequence, first_row, rows, length, first, end, problem);

    const long long row = problem.out_row(sequence.batch, sequence.head, first_row), all_rows = static_cast<long long>(problem.batch) * problem.kv_heads * rows;
    meet(found, meeting, min(ROWS, rows - first_row), head_dim, [&](int r, int d, float max, float sum, float undivided) {
        float* part = part_of(parts, split, row + r, all_rows, head_dim);
        part[d] = undivided;
        if (d == 0) part[head_dim] = max, part[head_dim + 1] = sum;
    });
}

// One block a row of the output, in the order of the splits: the same bits each time.
template <class T>
__global__ void decode_merge(float* parts, const int* lengths, T* out, int split_tokens, Problem problem) {
    const long long row = blockIdx.x, all_rows = gridDim.x;
    const int head_dim = problem.head_dim, length = lengths[row / (problem.kv_heads * problem.rows())];
    const int splits = max(1, (length + split_tokens - 1) / split_tokens);
    float max = NOTHING_SEEN;
    for (int split = threadIdx.x; split < splits; split += blockDim.x) max = fmaxf(max, part_of(parts, split, row, all_rows, head_dim)[head_dim]);
    max = block_max(max);
    for (int d = threadIdx.x; d < head_dim; d += blockDim.x) {
        float sum = 0.0f, undivided = 0.0f;
#pragma unroll 8
        for (int split = 0; split < splits; ++split) {
            const float* part = part_of(parts, split, row, all_rows, head_dim);
            const float factor = exp2_approx(part[head_dim] - max);
            sum += factor * part[head_dim + 1];
            undivided += factor * part[d];
        }
        out[row * head_dim + d] = from_float<T>(sum == 0.0f ? 0.0f : undivided / sum);
    }
}
