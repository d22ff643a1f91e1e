# reason: mismatch
first_ds = 4 - 7
second_ds = 8 - 7
