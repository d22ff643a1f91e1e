# reason: mismatch
score_bytes_moved = 32 * 4096 * 4096 * 4 * 2     # written once, read once: softmax reads and writes the matrix too
product_flops = 32 * 4096 * 4096 * 64 * 2 * 2
