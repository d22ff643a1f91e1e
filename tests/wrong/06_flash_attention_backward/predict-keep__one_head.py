# reason: mismatch
p_bytes = 16384 * 16384 * 2
again_flops = 16384 * 16384 * 128 * 2
