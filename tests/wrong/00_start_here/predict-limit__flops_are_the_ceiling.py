# reason: mismatch
flops_per_byte = 2 / 12
ceiling = "FLOPs"
least_ms = 2 * n / flops_per_s * 1000
