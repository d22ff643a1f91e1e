# reason: mismatch
first_ds = 0.25 * 4                      # as if a score had no effect on the other weight
second_ds = 0.75 * 8
