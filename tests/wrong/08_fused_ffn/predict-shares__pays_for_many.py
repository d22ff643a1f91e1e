# reason: mismatch
one_token, many_tokens, pays_for = 128 * 4096 * 4, 128 * 4096 * 4096 * 4, "many"
