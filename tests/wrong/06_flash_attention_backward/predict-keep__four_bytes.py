# reason: mismatch
p_bytes = 32 * 16384 * 16384 * 4         # bfloat16 has 2
again_flops = 32 * 16384 * 16384 * 128 * 2
