# reason: mismatch
blocks_needed = blocks_for(n, 256)
element = 1 * 256 + 5
idle_threads = blocks_needed * 256 - n
