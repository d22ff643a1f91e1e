# reason: mismatch
bytes_alone, bytes_in_cluster = 49152, 24576
