// Embedding backward, v3: our own sort of the tokens, 9 bits a pass and no more passes than the vocabulary has bits for; the sums as in v2.
//   Idea      A token below 2^18 needs two passes of a radix sort, not the eight of 64-bit numbers. A pass is two launches. First every chunk
//             of 2048 tokens is counted by digit. Then each chunk works out for itself where its tokens of each digit go: behind all smaller
//             digits, behind its own digit in earlier chunks. Within the chunk a warp has 128 neighbours; match_any says which lanes before
//             have the same digit. Counts are whole numbers, so additions in any order give the same: the sort is stable and repeatable.
//   Predicts  4 launches of some 3 us for 16384 tokens, where torch.sort took 88 us on an H200 while this was made.
//   Measured  data/measured/h200/embedding_backward.csv: 16384 tokens 263 -> 203 us (v2 with torch.sort), 71% of the limit where tokens are those
//             of a text; PyTorch 586 to 733, torch.compile 668 to 697. In a profile PyTorch takes 157 us to write the zeros alone.
//   Wastes    Every chunk reads the counts of all: with a million tokens a launch between the two should add them up.
#include "row_index.cuh"
#include "warp.cuh"

constexpr int DIGITS = 512, THREADS = 512, WARPS = THREADS / 32, EACH = 4, CHUNK = THREADS * EACH;

// The key by which a token is sorted: itself, or `vocab`, behind all others, if it is none of 0 ... vocab - 1.
__device__ int key_at(const void* tokens, bool wide, long long i, int vocab) {
    const long long token = index_at(tokens, wide, i);
    return token < 0 || token > vocab ? vocab : static_cast<int>(token);
}

// counts (chunks, DIGITS): how many of each chunk's tokens have each digit, that is (key >> shift) % DIGITS. One block a chunk.
__global__ void __launch_bounds__(THREADS)
count_digits(const void* tokens, bool wide, int* counts, int n, int vocab, int shift) {
    __shared__ int count[DIGITS];
    count[threadIdx.x] = 0;
    __syncthreads();
    for (int j = 0; j < EACH; ++j) {
        const int i = blockIdx.x * CHUNK + j * THREADS + threadIdx.x;
        if (i < n) atomicAdd(&count[key_at(tokens, wide, i, vocab) >> shift & (DIGITS - 1)], 1);
    }
    __syncthreads();
    counts[blockIdx.x * DIGITS + threadIdx.x] = count[threadIdx.x];
}

// Moves keys and where they come from to keys_out and order_out, by digit, those of one digit in their order. order null: 0, 1, 2 ...
__global__ void __launch_bounds__(THREADS)
scatter_digits(const void* tokens, bool wide, const int* order, const int* counts, int* keys_out, int* order_out, int n, int vocab, int shift) {
    __shared__ int next[WARPS][DIGITS];  // where a warp's next token of a digit goes
    __shared__ int of_warp[WARPS];
    const int digit = threadIdx.x;
    for (int w = 0; w < WARPS; ++w) next[w][digit] = 0;
    __syncthreads();

    // How many tokens of each digit this warp has.
    int key[EACH];
    unsigned same[EACH];
    const int first = blockIdx.x * CHUNK + warp_id() * 32 * EACH + lane_id();
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
        const int i = first + j * 32;
        key[j] = i < n ? key_at(tokens, wide, i, vocab) : -1;  // beyond the end: a digit of its own
        const int mine = key[j] < 0 ? DIGITS : key[j] >> shift & (DIGITS - 1);
        same[j] = __match_any_sync(FULL_WARP, mine);
        if (mine < DIGITS && lane_id() == __ffs(same[j]) - 1) next[warp_id()][mine] += __popc(same[j]);
        __syncwarp();
    }
    // How many of this thread's digit there are in all, and in the chunks before.
    int total = 0, before = 0;
    for (unsigned chunk = 0; chunk < gridDim.x; ++chunk) {
        const int count = counts[chunk * DIGITS + digit];
        total += count;
        before += chunk < blockIdx.x ? count : 0;
    }
    // Exclusive sum of the totals over the digits: within each warp, then over the warps.
    int sum = total;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(FULL_WARP, sum, distance);
        if (lane_id() >= distance) sum += other;
    }
    if (lane_id() == 31) of_warp[warp_id()] = sum;
    __syncthreads();
    int place = sum - total + before;
    for (int w = 0; w < warp_id(); ++w) place += of_warp[w];
    for (int w = 0; w < WARPS; ++w) {
        const int count = next[w][digit];
        next[w][digit] = place;
        place += count;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
        const int mine = key[j] >> shift & (DIGITS - 1), rank = __popc(same[j] & ((1u << lane_id()) - 1));
        int to = 0;
        if (key[j] >= 0) to = next[warp_id()][mine] + rank;
        __syncwarp();
        if (key[j] >= 0) {
            if (rank == 0) next[warp_id()][mine] += __popc(same[j]);
            keys_out[to] = key[j];
            order_out[to] = order ? order[first + j * 32] : first + j * 32;
        }
        __syncwarp();
    }
}
