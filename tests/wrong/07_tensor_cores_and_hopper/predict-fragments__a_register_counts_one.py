# reason: mismatch
of_a, of_b, of_c, times_an_fma = 4, 2, 4, 64
