"""PyTorch's own attention: its choice, and each of its backends by name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from labkernels.attention.reference import visible
from labkernels.operation import Peer


def native(q, k, v, causal=False, scale=None, *, window=None, mask=None) -> torch.Tensor:
    """`scaled_dot_product_attention`, by whichever backend PyTorch picks."""
    square = q.shape[2] == k.shape[2] and window is None and mask is None
    bias = one_mask(q, k, causal, window, mask) if mask is not None or window is not None or causal and not square else None
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal and square, scale=scale, enable_gqa=grouped)


def one_mask(q, k, causal: bool, window, mask) -> torch.Tensor:
    """Causal, window and mask in the one mask that PyTorch takes: bool, or of q's dtype."""
    shown = visible(q.shape[2], k.shape[2], q.device, causal, window) if causal or window is not None else None
    if mask is None:
        return shown
    if mask.dtype == torch.bool:
        return mask if shown is None else mask & shown
    mask = mask.to(q.dtype)
    return mask if shown is None else mask.masked_fill(~shown, -torch.inf)


def _peer(name: str, backend: SDPBackend, *, float32: bool = True, grouped_heads: bool = True, masks: bool = True) -> Peer:
    def fn(q, k, v, causal=False, scale=None, *, window=None, mask=None):
        with sdpa_kernel(backend):
            return native(q, k, v, causal, scale, window=window, mask=mask)

    def accepts(q, k, v, causal=False, scale=None, *, window=None, mask=None, return_lse=False):
        if q.device.type != "cuda":
            return "needs a GPU"
        if not float32 and q.dtype == torch.float32:
            return "no float32"
        if not grouped_heads and q.shape[1] != k.shape[1]:
            return "no grouped heads"
        if return_lse:
            return "PyTorch does not give its logsumexp"
        if window is not None:
            return "no window but as a mask of all pairs"
        if causal and (mask is not None or q.shape[2] != k.shape[2]):
            return "no causal mask beside another one" if mask is not None else "no causal mask aligned bottom right"
        if mask is not None and not masks:
            return "no mask"
        if mask is not None and mask.dtype not in (torch.bool, q.dtype):
            return "no mask of another dtype"
        return None

    return Peer(name, fn, accepts)


PEERS = {
    peer.name: peer
    for peer in (
        _peer("math", SDPBackend.MATH),
        _peer("efficient", SDPBackend.EFFICIENT_ATTENTION, grouped_heads=False),
        _peer("flash", SDPBackend.FLASH_ATTENTION, float32=False, masks=False),
        _peer("cudnn", SDPBackend.CUDNN_ATTENTION, float32=False),
    )
}
