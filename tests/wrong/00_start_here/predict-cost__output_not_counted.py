# reason: mismatch
bytes_moved = 2 * 4 * n      # the result has to move too
flops = 2 * n
