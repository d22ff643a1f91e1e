"""cuBLAS by way of PyTorch, alone and with PyTorch's compiler for what follows the product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from labkernels.matmul.reference import finish
from labkernels.operation import Peer


@contextmanager
def _no_tf32() -> Iterator[None]:
    """float32 means float32: products are not rounded to tf32, whatever the process has chosen."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def native(a, b, bias=None, activation=None, residual=None) -> torch.Tensor:
    """cuBLAS, which adds the bias, or a residual that nothing stands before; then one kernel of PyTorch for each thing that is left."""
    with _no_tf32():
        if bias is not None:
            return finish(torch.addmm(bias, a, b), None, activation, residual)
        if residual is not None and activation is None:
            return torch.addmm(residual, a, b)
        return finish(torch.mm(a, b), None, activation, residual)


def _chained(a, b, bias=None, activation=None, residual=None) -> torch.Tensor:
    return finish(torch.mm(a, b), bias, activation, residual)


@lru_cache(maxsize=64)
def _compiled(*case):
    torch.compiler.reset()
    return torch.compile(_chained, dynamic=False)


def _torch_compile(a, b, bias=None, activation=None, residual=None) -> torch.Tensor:
    """cuBLAS, and one fused kernel for what follows the product."""
    case = (a.shape, b.shape, b.stride(), a.dtype, bias is None, activation, residual is None)
    with _no_tf32():
        return _compiled(*case)(a, b, bias, activation, residual)


def _on_gpu(a, b, bias=None, activation=None, residual=None) -> str | None:
    return None if a.is_cuda else "needs a GPU"


def _with_epilogue(a, b, bias=None, activation=None, residual=None) -> str | None:
    if bias is activation is residual is None:
        return "the product alone is cuBLAS: nothing to fuse"
    return _on_gpu(a, b)


PEERS = {
    peer.name: peer
    for peer in (
        Peer("cublas", native, _on_gpu),
        Peer("torch_compile", _torch_compile, _with_epilogue),
    )
}
