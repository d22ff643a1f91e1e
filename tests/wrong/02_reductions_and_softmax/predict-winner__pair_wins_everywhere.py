# reason: mismatch
three_pass_exps = 2
pair_exps = 3
wins_in_cache = "running pair"
wins_in_memory = "running pair"
