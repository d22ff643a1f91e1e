# reason: mismatch
conflicts, place_of_3 = 7, 6
