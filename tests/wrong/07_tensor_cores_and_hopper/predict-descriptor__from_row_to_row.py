# reason: mismatch
stride, wgmmas, advance = 128, 4, 2
