# reason: mismatch
stride_1, stride_2, stride_4, stride_8, stride_32 = 4, 8, 16, 32, 128
