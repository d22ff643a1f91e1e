# reason: mismatch
longest = math.sqrt(141e9 / 32)
