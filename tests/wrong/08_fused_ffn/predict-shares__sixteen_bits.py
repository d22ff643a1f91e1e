# reason: mismatch
one_token, many_tokens, pays_for = 128 * 4096 * 2, 128 * 4096 * 4096 * 2, "one"
