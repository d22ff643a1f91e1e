# reason: mismatch
of_v2 = 16 * 30
of_v3 = 16 * 5
rate = 1 / (of_v3 * 15e-6)
