# reason: mismatch
stride_4, stride_32, backwards, one_late, one_for_all = 16, 128, 4, 5, 1
