"""Quantised weights: formats, quantisers, and the product of activations with them."""

from labkernels.quant.formats import QuantizedWeight
from labkernels.quant.quantizers import quantize

__all__ = ["QuantizedWeight", "quantize"]
