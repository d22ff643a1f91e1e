# reason: mismatch
stride, wgmmas, advance = 1024, 4, 32
