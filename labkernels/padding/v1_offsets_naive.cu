// Padding offsets, v1: naive. One thread a position counts all tokens before it, in its sequence and in all sequences before.
//   Idea      A token's place when packed is how many tokens stand before it. Counted by every thread alone, nothing has to be agreed upon.
//   Predicts  n positions, n * n / 2 bytes read, if from the caches: of 64 x 2048 positions 8.6 GB, milliseconds where the data are 131 kB.
//   Measured  data/measured/h200/padding_offsets.csv: 16 x 2048 positions 5.2 ms; PyTorch's cumsum and nonzero 55 us.
//   Wastes    Every count but the first differs from a neighbour's by 0 or 1.
#include "is_token.cuh"

// cu_seqlens (batch + 1,): where each sequence begins, and at last their sum. inverse (batch, seq_len): where a position's token lies when
// packed, -1 for padding. indices: for each packed token its position, sequence * seq_len + position.
__global__ void place_naive(const unsigned char* mask, const long long* lengths, int* cu_seqlens, int* inverse, int* indices, int batch,
                            int seq_len, long long mask_row, long long mask_col) {
    const long long flat = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (flat > static_cast<long long>(batch) * seq_len) return;
    int before = 0;
    for (long long i = 0; i < flat; ++i) before += is_token(mask, lengths, i / seq_len, i % seq_len, seq_len, mask_row, mask_col);
    if (flat % seq_len == 0) cu_seqlens[flat / seq_len] = before;
    if (flat == static_cast<long long>(batch) * seq_len) return;
    const bool token = is_token(mask, lengths, flat / seq_len, flat % seq_len, seq_len, mask_row, mask_col);
    inverse[flat] = token ? before : -1;
    if (token) indices[before] = static_cast<int>(flat);
}
