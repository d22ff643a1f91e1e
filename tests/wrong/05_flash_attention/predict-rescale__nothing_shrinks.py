# reason: mismatch
new_s = 1.5 + math.exp(3 - 1)            # still measured against the old maximum
new_o = 2.0 + math.exp(3 - 1) * 1.0
