# reason: mismatch
one_kernel = 5
two_kernels = 6                          # dp is computed in both kernels, too
differs = "dq"
