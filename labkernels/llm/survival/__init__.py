"""What lets a training survive: whole checkpoints, signals, steps that are skipped, out of memory explained."""
