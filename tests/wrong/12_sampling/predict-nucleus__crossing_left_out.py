# reason: mismatch
stay, first_drawn = 2, 0.4 / 0.7
