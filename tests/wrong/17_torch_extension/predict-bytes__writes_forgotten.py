# reason: mismatch
two_kernels = 4 + 2 * 4
one_kernel = 2 * 4
