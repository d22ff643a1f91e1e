# reason: mismatch
conflicts_of_sixteen, words_in_a_bank = 15, 16
