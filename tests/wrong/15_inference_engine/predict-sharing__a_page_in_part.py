# reason: mismatch
apart = 40 * -(-1150 // 16)
shared = 63 + 40 * -(-150 // 16)
