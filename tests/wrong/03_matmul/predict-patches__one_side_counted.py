# reason: mismatch
loads_4, loads_8, balanced = 4 / 16, 8 / 64, 4
