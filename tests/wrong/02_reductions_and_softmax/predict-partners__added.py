# reason: mismatch
at_distance_8 = 13 + 8       # xor flips the bit that is set
at_distance_4 = 13 + 4
