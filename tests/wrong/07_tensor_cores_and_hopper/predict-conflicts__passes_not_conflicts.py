# reason: mismatch
conflicts, place_of_3 = 32, 6
