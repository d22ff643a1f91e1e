# reason: mismatch
mfu = 6 * 0.645e9 * 16 * 2048 / 0.285 / 989e12
