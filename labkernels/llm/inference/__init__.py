"""The engine: prompts in, answers out, from a naive loop to captured graphs of kernels that begin early."""
