# reason: mismatch
four_kernels, one_kernel, with_residual = 16, 4, 8
