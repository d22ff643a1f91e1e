# reason: mismatch
two_gpus = 1 / 2 * 1.29
eight_gpus = 7 / 8 * 1.29
