"""The operations as functions: each picks the fastest variant that accepts its inputs, on the device where they live."""

from labkernels.attention import attention
from labkernels.attention_backward import attention_backward
from labkernels.ffn import ffn, ffn_backward
from labkernels.matmul import matmul
from labkernels.norm import add_rms_norm, layer_norm, layer_norm_backward, rms_norm, rms_norm_backward, rms_norm_quantized
from labkernels.quant import quant_matmul
from labkernels.sampling import sample_tokens
from labkernels.scaled_matmul import scaled_matmul
from labkernels.softmax import softmax
from labkernels.sum import sum
from labkernels.w8a8_matmul import w8a8_matmul

__all__ = [
    "add_rms_norm",
    "attention",
    "attention_backward",
    "ffn",
    "ffn_backward",
    "layer_norm",
    "layer_norm_backward",
    "matmul",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_quantized",
    "quant_matmul",
    "sample_tokens",
    "scaled_matmul",
    "softmax",
    "sum",
    "w8a8_matmul",
]
