# reason: mismatch
read_ms = 2**26 * 32 / 4.8e12 * 1000     # bits
times_fewer = 2**26 / (1024 * 256)
