"""Layers made of the operations: `lk.nn.FlashAttention`."""

from labkernels.nn.attention import FlashAttention
from labkernels.nn.ffn import FusedFFN
from labkernels.nn.norm import LayerNorm, RMSNorm
from labkernels.nn.quant_linear import QuantLinear

__all__ = ["FlashAttention", "FusedFFN", "LayerNorm", "QuantLinear", "RMSNorm"]
