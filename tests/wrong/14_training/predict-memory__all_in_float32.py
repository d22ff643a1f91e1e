# reason: mismatch
small_gb = 0.645 * (4 + 4 + 4 + 4 + 4)
large_gb = 6.74 * (4 + 4 + 4 + 4 + 4)
