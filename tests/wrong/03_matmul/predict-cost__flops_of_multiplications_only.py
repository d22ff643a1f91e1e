# reason: mismatch
flops = 4096**3      # an FMA counts as two
least_bytes = 3 * 4096**2 * 4
asked_bytes = 4096**3 * 2 * 4
