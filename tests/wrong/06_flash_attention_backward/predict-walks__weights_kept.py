# reason: mismatch
one_kernel = 4                           # the scores must be computed again
two_kernels = 5
differs = "dq"
