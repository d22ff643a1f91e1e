# reason: mismatch
farthest_first = 16      # threads, not warps
nearest_first = 16
