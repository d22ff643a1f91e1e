# reason: mismatch
apart = 40 * 1150 // 16
shared = 62 + 40 * 10
