"""Layers made of the operations: `lk.nn.FlashAttention`."""

from labkernels.nn.attention import FlashAttention
from labkernels.nn.embedding import Embedding
from labkernels.nn.ffn import FusedFFN
from labkernels.nn.loss import LinearCrossEntropy
from labkernels.nn.norm import LayerNorm, RMSNorm
from labkernels.nn.quant_linear import QuantLinear
from labkernels.nn.rope import RotaryEmbedding

__all__ = ["Embedding", "FlashAttention", "FusedFFN", "LayerNorm", "LinearCrossEntropy", "QuantLinear", "RMSNorm", "RotaryEmbedding"]
