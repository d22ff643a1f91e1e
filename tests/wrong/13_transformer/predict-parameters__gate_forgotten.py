# reason: mismatch
of_block = (32 + 2 * 8) * 64 * 2048 + 32 * 64 * 2048 + 2 * 8192 * 2048 + 2 * 2048
billions = (16 * of_block + 128_256 * 2048 + 2048) / 1e9
