# reason: mismatch
p_bytes = 32 * 16384 * 16384 * 2
again_flops = 32 * 16384 * 16384 * 128   # an FMA is 2 FLOPs
