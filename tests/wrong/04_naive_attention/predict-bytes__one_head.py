# reason: mismatch
bytes_of_q = 4 * 32 * 8192 * 64 * 4
bytes_of_scores = 4 * 8192 * 8192 * 4    # as if all heads shared one matrix
