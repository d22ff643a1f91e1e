# reason: mismatch
tile_bytes = 2 * 4096**2 * 4      # as if one block did it all
shared_bytes = 2 * 32 * 32 * 4
