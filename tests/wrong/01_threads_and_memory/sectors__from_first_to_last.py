# reason: mismatch
return (addresses.max() - addresses.min()) // 32 + 1       # as if all between the ends moved, and the ends were aligned
