# reason: mismatch
return 1 + np.count_nonzero(np.diff(addresses // 32))      # counts a sector again when lanes come back to it
