# reason: mismatch
everything = 6.74 * (2 + 2 + 4 + 4)
shared = everything / 8
