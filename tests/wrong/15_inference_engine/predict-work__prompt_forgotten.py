# reason: mismatch
recomputed = sum(range(512))
once = 64 + 511
