"""PyTorch's own attention: its choice, and each of its backends by name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from labkernels.attention.reference import visible
from labkernels.operation import Peer


def native(q, k, v, causal=False, scale=None) -> torch.Tensor:
    """`scaled_dot_product_attention`, by whichever backend PyTorch picks."""
    square = q.shape[2] == k.shape[2]
    mask = visible(q.shape[2], k.shape[2], q.device) if causal and not square else None
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and square, scale=scale, enable_gqa=grouped)


def _peer(name: str, backend: SDPBackend, half_precision_only: bool = False, grouped_heads: bool = True) -> Peer:
    def fn(q, k, v, causal=False, scale=None):
        with sdpa_kernel(backend):
            return native(q, k, v, causal, scale)

    def accepts(q, k, v, causal=False, scale=None):
        if q.device.type != "cuda":
            return "needs a GPU"
        if half_precision_only and q.dtype == torch.float32:
            return "no float32"
        if not grouped_heads and q.shape[1] != k.shape[1]:
            return "no grouped heads"
        if causal and q.shape[2] != k.shape[2]:
            return "no causal mask aligned bottom right"
        return None

    return Peer(name, fn, accepts)


PEERS = {
    peer.name: peer
    for peer in (
        _peer("math", SDPBackend.MATH),
        _peer("efficient", SDPBackend.EFFICIENT_ATTENTION, grouped_heads=False),
        _peer("flash", SDPBackend.FLASH_ATTENTION, half_precision_only=True),
        _peer("cudnn", SDPBackend.CUDNN_ATTENTION, half_precision_only=True),
    )
}
