# reason: mismatch
first_ds = 0.25 * (4 - 6)                # the average of 4 and 8 without their weights
second_ds = 0.75 * (8 - 6)
