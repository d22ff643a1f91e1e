// The beginning of a decode step: where each sequence's token goes, how far it is turned, and its row of the embedding. A block a sequence.
//   Idea      A step that nobody on the CPU looks at must know by itself where it is. Each sequence's length, on the GPU, grows by one with
//             each replay; slot, position, sines and the embedding follow from it. The token drawn last is noted for the CPU to read later.
//             Who has all of its tokens is an empty place from then on, while the others go on.
//             What the step before does not write is asked for before the wait, so that one way to memory is left: the embedding's row.
//   Predicts  The time of a launch; eight small PyTorch kernels take eight.
//   Wastes    Nothing to speak of; the end of the step before could do it.
#include "best.cuh"
#include "convert.cuh"
#include "fence.cuh"

// The likeliest token of this block's row, among the candidates of head.cu. All threads call.
__device__ int likeliest(const Best* bests, int candidates) {
    __shared__ Best of_warp[32];
    Best best = nothing_yet();
    for (int i = threadIdx.x; i < candidates; i += blockDim.x) best = better(best, bests[i]);
    best = best_of_lanes(best, 32);
    if (lane_id() == 0) of_warp[warp_id()] = best;
    __syncthreads();
    best = of_warp[0];
    for (int i = 1; i < static_cast<int>(blockDim.x) / 32; ++i) best = better(best, of_warp[i]);
    return best.token;
}

// tokens (m,) drawn last, or from the second step on the best of bests (m, candidates), unless that is null; draws (m,) how many tokens each request
// has, slots (m,) and the same as page and place in it, spots (m, 2), history (steps, m), step (m,) how many of its rows are written, last (m,) how many
// tokens are to be drawn: the last one is noted, and its row becomes one of length 0. lengths (m,) tokens in the cache, block_table (m, pages),
// turns (m, head_dim), embedding (vocab, embed_dim), hidden (m, embed_dim), angles (positions, head_dim). Rows of length 0 are empty places in the batch:
// they have no slot, and nothing is noted. `pieces`: of 16 bytes in a row of the embedding, or 0 where it is not made of them. Launch m blocks.
template <class T>
__global__ void begin_step(const long long* tokens, const Best* bests, int candidates, long long* draws, long long* slots, int2* spots,
                           long long* history, int* step, const int* last, int* lengths, const int* block_table, float* turns,
                           const T* embedding, T* hidden, const float* angles, int pages, int page_size, int head_dim, int pieces, int embed_dim,
                           int vocab, int positions) {
    const int row = blockIdx.x, m = gridDim.x, length = lengths[row], done = step[row];
    const long long draws_so_far = draws[row];
    const bool is_there = length > 0, goes_on = is_there && done < last[row], has_page = goes_on && length / page_size < pages;
    const int page = has_page ? block_table[static_cast<long long>(row) * pages + length / page_size] : -1;
    const float* const angle = angles + static_cast<long long>(min(length, positions - 1)) * head_dim;
    const float turn = angle[min(static_cast<int>(threadIdx.x), head_dim - 1)];
    grid_dependency_wait();
    grid_dependency_launch();
    const long long drawn = bests != nullptr && done > 0 ? likeliest(bests + row * candidates, candidates) : tokens[row];
    const long long token = drawn >= 0 && drawn < vocab ? drawn : 0;
    if (pieces > 0) {
        const uint4* const source = reinterpret_cast<const uint4*>(embedding) + token * pieces;
        for (int i = threadIdx.x; i < pieces; i += blockDim.x) reinterpret_cast<uint4*>(hidden)[row * pieces + i] = source[i];
    } else {
        for (int i = threadIdx.x; i < embed_dim; i += blockDim.x) hidden[static_cast<long long>(row) * embed_dim + i] = embedding[token * embed_dim + i];
    }
    if (threadIdx.x < static_cast<unsigned>(head_dim)) turns[row * head_dim + threadIdx.x] = turn;
    for (int i = threadIdx.x + blockDim.x; i < head_dim; i += blockDim.x) turns[row * head_dim + i] = angle[i];
    __syncthreads();  // all have read length and step
    if (threadIdx.x == 0) {
        slots[row] = page < 0 ? -1 : static_cast<long long>(page) * page_size + length % page_size;
        spots[row] = {page, length % page_size};
        if (is_there) {
            history[static_cast<long long>(done) * m + row] = drawn;
            step[row] = done + 1;
            lengths[row] = goes_on ? length + 1 : 0;
            draws[row] = draws_so_far + 1;
        }
    }
}
