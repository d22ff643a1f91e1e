"""The training loop and what it is made of: optimizers, 8-bit products, the monitor, the ablation."""
