# reason: mismatch
return len(np.unique(addresses // 8))
