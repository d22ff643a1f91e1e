# reason: mismatch
bytes_alone, bytes_in_cluster = 49152, (64 + 256) * 64 * 2
