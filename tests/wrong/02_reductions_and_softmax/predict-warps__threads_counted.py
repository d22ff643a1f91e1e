# reason: mismatch
nearest_partner_first, neighbours = 16, 16      # threads, not warps
