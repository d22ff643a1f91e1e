"""What a notebook shows: the checker, the benchmark, the recorded figures, the pictures and the magics."""
