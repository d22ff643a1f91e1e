# reason: mismatch
first, second, third = "race", "deadlock", "deadlock"
