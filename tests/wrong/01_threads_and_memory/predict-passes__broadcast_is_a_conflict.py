# reason: mismatch
stride_1, stride_2, stride_32, stride_33, same_word = 1, 2, 32, 1, 32
