# reason: mismatch
left_now, right_now, left_then, right_then = 1, 4, 32, 1
