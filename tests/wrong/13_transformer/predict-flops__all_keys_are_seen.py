# reason: mismatch
weights_gflop = 6 * 0.6449
break_even = weights_gflop * 1e9 / (3 * (2 + 2) * 24 * 24 * 64)
