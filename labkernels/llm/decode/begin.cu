// The beginning of a decode step: where each sequence's token goes, how far it is turned, and its row of the embedding. A block a sequence.
//   Idea      A step that nobody on the CPU looks at must know by itself where it is. Each sequence's length, on the GPU, grows by one with
//             each replay; slot, position, sines and the embedding follow from it. The token drawn last is noted for the CPU to read later.
//   Predicts  The time of a launch; eight small PyTorch kernels take eight.
//   Wastes    Nothing to speak of; the end of the step before could do it.
#include "convert.cuh"
#include "fence.cuh"

// State of the step, for m sequences; rows of length 0 are empty places in the batch: they have no slot and nothing is noted.
struct State {
    long long* tokens;      // (m,) drawn last
    long long* draws;       // (m,) how many tokens the request has
    long long* slots;       // (m,)
    long long* history;     // (steps, m)
    int* step;              // (m,) how many rows of history are written
    int* lengths;           // (m,) tokens in the cache
    const int* block_table; // (m, table_stride)
    float* turns;           // (m, head_dim): cosines, then sines
    int table_stride, page_size, head_dim, m;
};

// embedding (vocab, embed_dim), hidden (m, embed_dim), angles (positions, head_dim). Launch m blocks of 256 threads.
template <class T>
__global__ void begin_step(const T* embedding, T* hidden, const float* angles, State state, int embed_dim, int vocab, int positions) {
    grid_dependency_wait();
    grid_dependency_launch();
    const int row = blockIdx.x, length = state.lengths[row];
    const long long drawn = state.tokens[row], token = drawn >= 0 && drawn < vocab ? drawn : 0;
    __syncthreads();  // all have read the length
    if (threadIdx.x == 0) {
        if (length > 0) {
            state.history[static_cast<long long>(state.step[row]++) * state.m + row] = drawn;
            state.lengths[row] = length + 1;
            state.draws[row] += 1;
            const int page = state.block_table[row * state.table_stride + length / state.page_size];
            state.slots[row] = static_cast<long long>(page) * state.page_size + length % state.page_size;
        } else {
            state.slots[row] = -1;
        }
    }
    const float* const angle = angles + static_cast<long long>(min(length, positions - 1)) * state.head_dim;
    for (int i = threadIdx.x; i < state.head_dim; i += blockDim.x) state.turns[row * state.head_dim + i] = angle[i];
    for (int i = threadIdx.x; i < embed_dim; i += blockDim.x) {
        hidden[static_cast<long long>(row) * embed_dim + i] = embedding[token * embed_dim + i];
    }
}
