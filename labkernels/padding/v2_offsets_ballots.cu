// Padding offsets, v2: ballots. A block a sequence: one launch counts its tokens, a second gives each its place.
//   Idea      A block adds up the counts of the sequences before its own, so that it knows where its tokens begin, and walks over its mask:
//             within a warp a ballot says how many lanes before have a token, in the block the warps' counts are added. No atomics: every
//             token's place follows from the mask alone.
//   Predicts  One byte read and eight written a position, twice the time of a launch: what matters is that nothing waits for the host.
//   Measured  data/measured/h200/padding_offsets.csv: 16 x 2048 positions 5210 -> 7.6 us, 16 x 128 4.9 us; PyTorch 55 and 49 us.
//   Wastes    The second read of the mask.
#include "is_token.cuh"
#include "warp.cuh"

constexpr int WARPS = 8, THREADS = 32 * WARPS;

// counts (batch,): how many tokens each sequence has. One block a sequence.
__global__ void __launch_bounds__(THREADS)
count_tokens(const unsigned char* mask, const long long* lengths, int* counts, int seq_len, long long mask_row, long long mask_col) {
    __shared__ int of_warp[WARPS];
    int count = 0;
    for (int position = threadIdx.x; position < seq_len; position += THREADS)
        count += is_token(mask, lengths, blockIdx.x, position, seq_len, mask_row, mask_col);
    count = warp_sum(count);
    if (lane_id() == 0) of_warp[warp_id()] = count;
    __syncthreads();
    if (threadIdx.x != 0) return;
    count = 0;
    for (int w = 0; w < WARPS; ++w) count += of_warp[w];
    counts[blockIdx.x] = count;
}

// cu_seqlens (batch + 1,): where each sequence begins, and at last their sum. inverse (batch, seq_len): where a position's token lies when
// packed, -1 for padding. indices: for each packed token its position, sequence * seq_len + position; room for batch * seq_len of them.
__global__ void __launch_bounds__(THREADS)
place_tokens(const unsigned char* mask, const long long* lengths, const int* counts, int* cu_seqlens, int* inverse, int* indices,
             int seq_len, long long mask_row, long long mask_col) {
    __shared__ int of_warp[WARPS];
    int before = 0;
    for (unsigned sequence = threadIdx.x; sequence < blockIdx.x; sequence += THREADS) before += counts[sequence];
    before = warp_sum(before);
    if (lane_id() == 0) of_warp[warp_id()] = before;
    __syncthreads();
    int next = 0;  // the place of this block's next token
    for (int w = 0; w < WARPS; ++w) next += of_warp[w];
    if (threadIdx.x == 0) {
        if (blockIdx.x == 0) cu_seqlens[0] = 0;
        cu_seqlens[blockIdx.x + 1] = next + counts[blockIdx.x];
    }
    for (int start = 0; start < seq_len; start += THREADS) {
        const int position = start + threadIdx.x;
        const bool token = is_token(mask, lengths, blockIdx.x, position, seq_len, mask_row, mask_col);
        const unsigned ballot = __ballot_sync(FULL_WARP, token);
        __syncthreads();  // of_warp has been read by all
        if (lane_id() == 0) of_warp[warp_id()] = __popc(ballot);
        __syncthreads();
        int place = next + __popc(ballot & ((1u << lane_id()) - 1));
        for (int w = 0; w < WARPS; ++w) {
            place += w < warp_id() ? of_warp[w] : 0;
            next += of_warp[w];
        }
        if (position >= seq_len) continue;
        const long long flat = blockIdx.x * (long long)seq_len + position;
        inverse[flat] = token ? place : -1;
        if (token) indices[place] = static_cast<int>(flat);
    }
}
