"""Layers made of the operations: `lk.nn.FlashAttention`."""

from labkernels.nn.attention import FlashAttention

__all__ = ["FlashAttention"]
