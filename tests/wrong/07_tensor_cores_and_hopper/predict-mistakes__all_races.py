# reason: mismatch
first, second, third = "race", "race", "race"
