"""PyTorch's three operations, as everybody writes them, and what its compiler makes of them."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

from labkernels.ffn.reference import activate, backward_reference, is_gated
from labkernels.matmul.peers import _no_tf32
from labkernels.operation import Peer


def _network(x, w1, w2, b1, b2, activation) -> torch.Tensor:
    return F.linear(activate(F.linear(x, w1, b1), activation), w2, b2)


def _gated_network(x, gate, up, w2, gate_bias, up_bias, b2) -> torch.Tensor:
    return F.linear(F.silu(F.linear(x, gate, gate_bias)) * F.linear(x, up, up_bias), w2, b2)


def native(x, w1, w2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    """cuBLAS, a kernel of PyTorch for the activation (for SwiGLU two), cuBLAS. SwiGLU's gates and ups are two products, as in Llama."""
    with _no_tf32():
        if is_gated(activation):
            return _gated_network(x, *w1.chunk(2), w2, *((None, None) if b1 is None else b1.chunk(2)), b2)
        return _network(x, w1, w2, b1, b2, activation)


@lru_cache(maxsize=64)
def _compiled(network, *case):
    torch.compiler.reset()
    return torch.compile(network, dynamic=False)


def _torch_compile(x, w1, w2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    case = (x.shape, x.stride(), w1.shape, x.dtype, activation, b1 is None, b2 is None)
    with _no_tf32():
        if is_gated(activation):
            halves = (None, None) if b1 is None else b1.chunk(2)
            return _compiled(_gated_network, *case)(x, *w1.chunk(2), w2, *halves, b2)
        return _compiled(_network, *case)(x, w1, w2, b1, b2, activation)


def backward_native(grad_out, x, pre, w1, w2, activation="gelu", bias=False) -> tuple[torch.Tensor, ...]:
    """What autograd does: cuBLAS for five products (pre is saved, h comes again), PyTorch's kernels for the slope."""
    none = grad_out.new_empty(0)
    with _no_tf32(), torch.enable_grad():
        leaf = pre.detach().requires_grad_()
        h = activate(leaf, activation)
        (dpre,) = torch.autograd.grad(h, leaf, grad_out @ w2)
    with _no_tf32():
        h = h.detach()
        gradients = dpre @ w1, dpre.t() @ x, grad_out.t() @ h
        return *gradients, dpre.sum(0) if bias else none, grad_out.sum(0) if bias else none


@lru_cache(maxsize=64)
def _compiled_backward(*case):
    torch.compiler.reset()
    return torch.compile(backward_reference, dynamic=False)


def _backward_torch_compile(grad_out, x, pre, w1, w2, activation="gelu", bias=False):
    with _no_tf32():
        return _compiled_backward(x.shape, pre.shape, x.dtype, activation, bias)(grad_out, x, pre, w1, w2, activation, bias)


def _on_gpu(x, **_) -> str | None:
    return None if x.is_cuda else "needs a GPU"


PEERS = {peer.name: peer for peer in (Peer("torch", native, _on_gpu), Peer("torch.compile", _torch_compile, _on_gpu))}
BACKWARD_PEERS = {
    peer.name: peer for peer in (Peer("torch", backward_native, _on_gpu), Peer("torch.compile", _backward_torch_compile, _on_gpu))
}
