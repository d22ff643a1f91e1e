# reason: mismatch
weight_bytes, token_flops, break_even = 4096 * 11008 * 2, 2 * 4096 * 11008, 206
