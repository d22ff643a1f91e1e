# reason: mismatch
one_kernel = 5
two_kernels = 7
differs = "dk"                           # one thread adds to a row of dk, in the order of its loop
