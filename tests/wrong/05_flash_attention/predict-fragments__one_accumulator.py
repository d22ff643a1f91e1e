# reason: mismatch
lanes_a_row = 8           # both accumulators' columns are of the same four lanes
shuffles = 3
