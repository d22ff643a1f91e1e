# reason: mismatch
steps_bytes, kernel_bytes, angle_back = 4 * 8 + 2 * 12 + 8, 8, "-theta"
