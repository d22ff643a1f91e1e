# reason: mismatch
weights_gflop = 2 * 0.6449
break_even = 2 * weights_gflop * 1e9 / ((2 + 2) * 24 * 24 * 64)
