"""The same training on several GPUs: DDP, FSDP, tensor parallelism, checkpoints for any number of GPUs, what is sent."""
