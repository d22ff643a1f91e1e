# reason: mismatch
products = 3
split_tflops = 287                       # only one in three is useful
