# reason: mismatch
sixteen_bit_bytes, four_bit_bytes, bits_a_weight = 11008 * 4096 * 2, 11008 * 4096 // 2 + 11008 * 4096 // 128 * 2, 4.125
