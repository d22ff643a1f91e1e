# reason: mismatch
alone = bandwidth * 1e9 / sum(bytes_of_a_pass(llama, 1, 320))
together = alone
