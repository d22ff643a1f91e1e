# reason: mismatch
two_gpus = 1.29
eight_gpus = 7 * 1.29
