// The beginning of a decode step: where each sequence's token goes, how far it is turned, and its row of the embedding. A block a sequence.
//   Idea      A step that nobody on the CPU looks at must know by itself where it is. Each sequence's length, on the GPU, grows by one with
//             each replay; slot, position, sines and the embedding follow from it. The token drawn last is noted for the CPU to read later.
//   Predicts  The time of a launch; eight small PyTorch kernels take eight.
//   Wastes    Nothing to speak of; the end of the step before could do it.
#include "convert.cuh"
#include "fence.cuh"

// tokens (m,) drawn last, draws (m,) how many tokens each request has, slots (m,), history (steps, m), step (m,) how many of its rows are written,
// lengths (m,) tokens in the cache, block_table (m, pages), turns (m, head_dim), embedding (vocab, embed_dim), hidden (m, embed_dim), angles
// (positions, head_dim). Rows of length 0 are empty places in the batch: they have no slot, and nothing is noted. Launch m blocks.
template <class T>
__global__ void begin_step(const long long* tokens, long long* draws, long long* slots, long long* history, int* step, int* lengths,
                           const int* block_table, float* turns, const T* embedding, T* hidden, const float* angles, int pages, int page_size,
                           int head_dim, int embed_dim, int vocab, int positions) {
    grid_dependency_wait();
    grid_dependency_launch();
    const int row = blockIdx.x, m = gridDim.x, length = lengths[row];
    const long long drawn = tokens[row], token = drawn >= 0 && drawn < vocab ? drawn : 0;
    __syncthreads();  // all have read the length
    if (threadIdx.x == 0) {
        slots[row] = -1;
        if (length > 0) {
            history[static_cast<long long>(step[row]++) * m + row] = drawn;
            lengths[row] = length + 1;
            draws[row] += 1;
            const int page = block_table[static_cast<long long>(row) * pages + length / page_size];
            slots[row] = static_cast<long long>(page) * page_size + length % page_size;
        }
    }
    const float* const angle = angles + static_cast<long long>(min(length, positions - 1)) * head_dim;
    for (int i = threadIdx.x; i < head_dim; i += blockDim.x) turns[row * head_dim + i] = angle[i];
    for (int i = threadIdx.x; i < embed_dim; i += blockDim.x) hidden[static_cast<long long>(row) * embed_dim + i] = embedding[token * embed_dim + i];
}
