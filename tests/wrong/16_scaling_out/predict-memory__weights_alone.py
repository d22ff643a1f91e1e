# reason: mismatch
everything = 6.74 * (2 + 2 + 4 + 4 + 4)
shared = 6.74 * (2 / 8 + 2 + 4 + 4 + 4)
