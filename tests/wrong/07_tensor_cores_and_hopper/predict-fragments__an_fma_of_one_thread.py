# reason: mismatch
of_a, of_b, of_c, times_an_fma = 8, 4, 4, 2048
