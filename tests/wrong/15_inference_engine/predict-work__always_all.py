# reason: mismatch
recomputed = 512 * (64 + 512)
once = 64 + 512
