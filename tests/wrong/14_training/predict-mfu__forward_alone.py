# reason: mismatch
flops = 2 * 0.645e9 + 24 * (2 * 2 * 1536 * 2048 / 2)
mfu = flops * 16 * 2048 / 0.285 / 989e12
