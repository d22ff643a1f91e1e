# reason: mismatch
bytes_asked = 32 * (4096 + 4096) * 64 * 4          # a row is read by every thread of its row or column of scores
bytes_there = 2 * 32 * 4096 * 64 * 4
