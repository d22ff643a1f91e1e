"""The operations as functions: each picks the fastest variant that accepts its inputs, on the device where they live."""

from labkernels.attention import attention, attention_varlen
from labkernels.attention_backward import attention_backward
from labkernels.elementwise import residual_add, swiglu, swiglu_backward
from labkernels.embedding import embedding, embedding_backward
from labkernels.ffn import ffn, ffn_backward, ffn_fp8
from labkernels.gemv import gemv
from labkernels.kvcache import cache_append, decode_attention, prefill_attention
from labkernels.loss import cross_entropy, linear_cross_entropy
from labkernels.masks import attention_mask, masked_softmax
from labkernels.matmul import matmul
from labkernels.norm import add_rms_norm, layer_norm, layer_norm_backward, rms_norm, rms_norm_backward, rms_norm_quantized
from labkernels.padding import pad, padding_offsets, unpad
from labkernels.quant import quant_matmul
from labkernels.rope import qkv_rope_cache, rope, rope_frequencies, rope_table
from labkernels.sampling import sample_tokens
from labkernels.scaled_matmul import scaled_matmul
from labkernels.softmax import softmax
from labkernels.sum import sum
from labkernels.symmetric_matmul import symmetric_matmul
from labkernels.w8a8_matmul import w8a8_matmul

__all__ = [
    "add_rms_norm",
    "attention",
    "attention_backward",
    "attention_mask",
    "attention_varlen",
    "cache_append",
    "cross_entropy",
    "decode_attention",
    "embedding",
    "embedding_backward",
    "ffn",
    "ffn_backward",
    "ffn_fp8",
    "gemv",
    "layer_norm",
    "layer_norm_backward",
    "linear_cross_entropy",
    "masked_softmax",
    "matmul",
    "pad",
    "padding_offsets",
    "prefill_attention",
    "qkv_rope_cache",
    "quant_matmul",
    "residual_add",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_quantized",
    "rope",
    "rope_frequencies",
    "rope_table",
    "sample_tokens",
    "scaled_matmul",
    "softmax",
    "sum",
    "symmetric_matmul",
    "swiglu",
    "swiglu_backward",
    "unpad",
    "w8a8_matmul",
]
