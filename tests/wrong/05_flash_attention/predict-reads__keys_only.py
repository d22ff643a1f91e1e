# reason: mismatch
bytes_alone = 32 * 4096 * 4096 * 64 * 4          # the values are read too
bytes_shared = bytes_alone / 64
