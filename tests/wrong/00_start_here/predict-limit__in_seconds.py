# reason: mismatch
flops_per_byte = 2 / 12
ceiling = "bytes"
least_ms = 3 * 4 * n / bytes_per_s
