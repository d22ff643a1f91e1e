# reason: mismatch
first, second, third = "race", "out_of_bounds", "misaligned"
