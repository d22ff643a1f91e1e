"""PyTorch's own gradients of attention: its choice of backend, and each backend by name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.weak import WeakTensorKeyDictionary

from labkernels.attention import peers as forward
from labkernels.attention_backward.reference import reference
from labkernels.operation import Peer

Graph = tuple[torch.Tensor, list[torch.Tensor]]  # the result of a forward pass, and what its gradients are wanted of


def _graph(attention: Callable, backend: SDPBackend | list[SDPBackend] | None, q, k, v, causal, scale, window, mask) -> Graph:
    leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    with torch.enable_grad(), nullcontext() if backend is None else sdpa_kernel(backend):
        return attention(*leaves, causal, scale, window=window, mask=mask), leaves


def native(grad_out, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None, deterministic=False):
    """The gradients of `scaled_dot_product_attention`, by whichever backend PyTorch picks; its forward pass runs first, every time.

    On a GPU, with a mask or a head_dim that no kernel takes as it is: by the memory-efficient kernel, on operands laid out for it. cuDNN 9.19
    fails on some masks (CUDNN_STATUS_INTERNAL_ERROR), and the process's GPU context with it; and the math backend computes in float32, whose
    errors say nothing about what bfloat16 allows.
    """
    padded = q.is_cuda and (mask is not None or q.shape[-1] % 8 != 0)
    chosen = (padded_attention, SDPBackend.EFFICIENT_ATTENTION) if padded else (forward.native, None)
    found, leaves = _graph(*chosen, q, k, v, causal, scale, window, mask)
    gradients = torch.autograd.grad(found, leaves, grad_out)
    if all(gradient.isfinite().all() for gradient in gradients):
        return gradients
    # Some backends give NaN for a query that sees no key.
    return reference(grad_out, q, k, v, out, lse, causal, scale, window=window, mask=mask)


def padded_attention(q, k, v, causal=False, scale=None, *, window=None, mask=None) -> torch.Tensor:
    """`scaled_dot_product_attention` on what its memory-efficient kernel takes: as many heads of k and v as of q, a head_dim that is a multiple
    of 8, and a mask of all pairs whose rows begin at multiples of 16 elements."""
    width = q.shape[-1]
    scale = width**-0.5 if scale is None else scale
    k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
    bias = forward.one_mask(q, k, causal, window, mask)
    if bias is not None:
        rows = torch.zeros(*q.shape[:3], -(-k.shape[2] // 16) * 16, dtype=bias.dtype, device=q.device)
        bias = rows[..., : k.shape[2]].copy_(bias)
    q, k, v = (F.pad(tensor, (0, -width % 8)) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)[..., :width]


def _peer(name: str, backend: SDPBackend) -> Peer:
    graphs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # by grad_out: the forward pass runs once for each set of inputs
    refusal = forward.PEERS[name].accepts

    def fn(grad_out, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None):
        if grad_out not in graphs:
            graphs[grad_out] = _graph(forward.native, backend, q, k, v, causal, scale, window, mask)
        found, leaves = graphs[grad_out]
        return torch.autograd.grad(found, leaves, grad_out, retain_graph=True)

    def accepts(grad_out, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None, deterministic=False):
        return "not deterministic" if deterministic else refusal(q, k, v, causal, scale, window=window, mask=mask)

    return Peer(name, fn, accepts)


PEERS = {
    name: _peer(name, backend)
    for name, backend in (
        ("efficient", SDPBackend.EFFICIENT_ATTENTION),
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
    )
}
