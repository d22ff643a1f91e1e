# reason: mismatch
conflicts, place_of_3 = 28, (3 + 5) % 8
