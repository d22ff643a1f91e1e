# reason: mismatch
piece_sectors, times_the_bytes = 4, 1      # true of neighbouring lanes with neighbouring elements
