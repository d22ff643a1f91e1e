# reason: mismatch
products = 2                             # of sums of two, every part is multiplied with every part
split_tflops = 287 / 2
