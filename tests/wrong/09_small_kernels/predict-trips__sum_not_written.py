# reason: mismatch
four_kernels, one_kernel, with_residual = 28, 8, 12
