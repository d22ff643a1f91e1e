# reason: mismatch
stay, first_drawn = 3, 0.4
