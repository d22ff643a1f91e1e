# reason: mismatch
passes_at_1, passes_at_4 = 2, 32      # 4 banks give a word each in every pass
