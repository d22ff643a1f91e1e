# reason: mismatch
stride, wgmmas, advance = 512, 4, 1
