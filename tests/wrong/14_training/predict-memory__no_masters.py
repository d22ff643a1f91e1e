# reason: mismatch
small_gb = 0.645 * (2 + 2 + 4 + 4)
large_gb = 6.74 * (2 + 2 + 4 + 4)
