# reason: mismatch
trip = 16384 * 4096 * 4
three_pass_bytes = 3 * trip
least_bytes = trip
