# reason: mismatch
products = 4                             # low times low is left out
split_tflops = 287 / 4
