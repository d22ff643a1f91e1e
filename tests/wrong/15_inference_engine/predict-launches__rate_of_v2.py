# reason: mismatch
of_v2 = 16 * 30 + 3
of_v3 = 16 * 5 + 3
rate = 1 / (of_v2 * 15e-6)
