// Which positions of padded sequences hold tokens.
#pragma once

// By mask (batch, seq_len), bytes, or, if that is null, by the sequences' lengths.
__device__ inline bool is_token(const unsigned char* mask, const long long* lengths, long long sequence, int position, int seq_len,
                                long long mask_row, long long mask_col) {
    if (position >= seq_len) return false;
    return mask ? mask[sequence * mask_row + position * mask_col] != 0 : position < lengths[sequence];
}
