"""PyTorch's own gradients of attention: its choice of backend, and each backend by name."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.weak import WeakTensorKeyDictionary

from labkernels.attention import peers as forward
from labkernels.attention_backward.reference import reference
from labkernels.operation import Peer

Graph = tuple[torch.Tensor, list[torch.Tensor]]  # the result of a forward pass, and what its gradients are wanted of


def _graph(backend: SDPBackend | list[SDPBackend] | None, q, k, v, causal, scale, window, mask) -> Graph:
    leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    with torch.enable_grad(), nullcontext() if backend is None else sdpa_kernel(backend):
        return forward.native(*leaves, causal, scale, window=window, mask=mask), leaves


def native(grad_out, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None, deterministic=False):
    """The gradients of `scaled_dot_product_attention`, by whichever backend PyTorch picks; its forward pass runs first, every time.

    With a mask not by cuDNN: 9.19 fails on some (CUDNN_STATUS_INTERNAL_ERROR), and the process's GPU context with it.
    """
    backends = None if mask is None or not q.is_cuda else [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    found, leaves = _graph(backends, q, k, v, causal, scale, window, mask)
    gradients = torch.autograd.grad(found, leaves, grad_out)
    if all(gradient.isfinite().all() for gradient in gradients):
        return gradients
    # Some backends give NaN for a query that sees no key.
    return reference(grad_out, q, k, v, out, lse, causal, scale, window=window, mask=mask)


def _peer(name: str, backend: SDPBackend) -> Peer:
    graphs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # by grad_out: the forward pass runs once for each set of inputs
    refusal = forward.PEERS[name].accepts

    def fn(grad_out, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None):
        if grad_out not in graphs:
            graphs[grad_out] = _graph(backend, q, k, v, causal, scale, window, mask)
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
