# reason: mismatch
online_bytes = 65536 * 64 * 4
naive_bytes = 65536 * 65536 * 4 + online_bytes
