"""Layers made of the operations: `lk.nn.FlashAttention`."""

from labkernels.nn.attention import FlashAttention
from labkernels.nn.norm import LayerNorm, RMSNorm

__all__ = ["FlashAttention", "LayerNorm", "RMSNorm"]
