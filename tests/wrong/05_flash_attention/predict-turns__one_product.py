# reason: mismatch
product_cycles = 2 * 64 * 128 * 64 / 4096
exponential_cycles = 64 * 128 / 16
share = product_cycles / (product_cycles + exponential_cycles)
