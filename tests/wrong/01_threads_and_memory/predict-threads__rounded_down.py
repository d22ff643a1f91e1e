# reason: mismatch
blocks_needed = n // 256     # the last, partial block is needed too
element = 2 * 256 + 5
idle_threads = 0
