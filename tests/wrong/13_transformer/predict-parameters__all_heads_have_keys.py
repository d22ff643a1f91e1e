# reason: mismatch
of_block = 3 * 32 * 64 * 2048 + 32 * 64 * 2048 + 3 * 8192 * 2048 + 2 * 2048
billions = (16 * of_block + 128_256 * 2048 + 2048) / 1e9
