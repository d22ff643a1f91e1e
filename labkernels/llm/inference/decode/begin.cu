// The beginning of a decode step: where each sequence's token goes, how far it is turned, and its row of the embedding. A block a sequence.
//   Idea      A step that nobody on the CPU looks at must know by itself where it is. Each sequence's length, on the GPU, grows by one with
//             each replay; slot, position, sines and the embedding follow from it. The token drawn last is noted for the CPU to read later.
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
    best = lane_id() < static_cast<int>(blockDim.x) / 32 ? of_warp[lane_id()] : nothing_yet();
    return best_of_lanes(best, 32).token;
}

// tokens (m,) drawn last, or from the second step on the best of bests (m, candidates), unless that is null; draws (m,) how many tokens each request has, slots (m,) and the same as page and place in it (m, 2), history (steps, m), step (m,) how many of its rows are written,
// lengths (m,) tokens in the cache, block_table (m, pages), turns (m, head_dim), embedding (vocab, embed_dim), hidden (m, embed_dim), angles
// (positions, head_dim). Rows of length 0 are empty places in the batch: they have no slot, and nothing is noted. Launch m blocks.
template <class T>
__global__ void begin_step(const long long* tokens, const Best* bests, int candidates, long long* draws, long long* slots, int2* spots, long long* history, int* step, int* lengths,
                           const int* block_table, float* turns, const T* embedding, T* hidden, const float* angles, int pages, int page_size,
                           int head_dim, int embed_dim, int vocab, int positions) {
    grid_dependency_wait();
    grid_dependency_launch();
    const int row = blockIdx.x, m = gridDim.x, length = lengths[row], done = step[row];
    const long long drawn = bests != nullptr && done > 0 ? likeliest(bests + row * candidates, candidates) : tokens[row];
    const long long token = drawn >= 0 && drawn < vocab ? drawn : 0;
    __syncthreads();  // all have read length and step
    if (threadIdx.x == 0) {
        slots[row] = -1;
        spots[row] = {-1, 0};
        if (length > 0) {
            history[static_cast<long long>(done) * m + row] = drawn;
            step[row] = done + 1;
            lengths[row] = length + 1;
            draws[row] += 1;
            if (length / page_size < pages) {
                const int page = block_table[static_cast<long long>(row) * pages + length / page_size];
                slots[row] = static_cast<long long>(page) * page_size + length % page_size;
                spots[row] = {page, length % page_size};
            }
        }
    }
    const float* const angle = angles + static_cast<long long>(min(length, positions - 1)) * head_dim;
    for (int i = threadIdx.x; i < head_dim; i += blockDim.x) turns[row * head_dim + i] = angle[i];
    for (int i = threadIdx.x; i < embed_dim; i += blockDim.x) hidden[static_cast<long long>(row) * embed_dim + i] = embedding[token * embed_dim + i];
}
