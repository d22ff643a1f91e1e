# reason: mismatch
one_by_one = 20_000_000
in_a_tree = 20_000_000
