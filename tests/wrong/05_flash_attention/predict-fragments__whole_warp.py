# reason: mismatch
lanes_a_row = 32
shuffles = 5              # as in the sum of a whole warp
