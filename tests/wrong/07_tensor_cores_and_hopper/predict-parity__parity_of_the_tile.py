# reason: mismatch
stage_of_5, full_parity, empty_parity = 1, 1, 0
