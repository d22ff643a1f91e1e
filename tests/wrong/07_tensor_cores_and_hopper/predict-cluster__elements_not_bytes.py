# reason: mismatch
bytes_alone, bytes_in_cluster = 24576, 16384
