# reason: mismatch
steps_bytes, kernel_bytes, angle_back = 36, 8, "theta"
