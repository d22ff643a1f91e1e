# reason: mismatch
merged_m = 3
merged_s = 2 + 4           # measured against two different maxima
