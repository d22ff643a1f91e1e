"""What a W8A8 multiplication is measured against: the same in PyTorch's operations, compiled, and bf16 without any quantisation."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.utils.weak import WeakIdKeyDictionary

from labkernels.elementwise.peers import compiled
from labkernels.operation import Peer
from labkernels.w8a8_matmul.reference import quantise

_widened = WeakIdKeyDictionary()  # weight -> what it stands for, in 16 bits: a layer that is not quantised has it ready


def native(x, weight, scale, bias=None) -> torch.Tensor:
    """Any sizes: the product is float64's, as exact as that of bytes."""
    q, scale_q = quantise(x)
    product = (q.double() @ weight.double().t()).float() * (scale_q[:, None] * scale.reshape(1, -1))
    return (product if bias is None else product + bias).to(x.dtype)


def cublas(x, weight, scale, bias=None) -> torch.Tensor:
    """The layer as it is without quantisation: cuBLAS in x's dtype. The weight is widened at the first call alone."""
    if weight not in _widened:
        _widened[weight] = (weight.float() * scale.reshape(-1, 1)).to(x.dtype)
    return F.linear(x, _widened[weight], bias)


def _int_mm_refusal(x, weight) -> str | None:
    if x.shape[0] <= 16 or x.shape[1] % 8 or weight.shape[0] % 8 or not x.shape[1]:
        return "torch._int_mm takes more than 16 rows, and k and n that are multiples of 8"
    return None if weight.stride(0) % 16 == 0 and weight.data_ptr() % 16 == 0 else "torch._int_mm takes rows on multiples of 16 bytes"


def int_mm(x, weight, scale, bias=None) -> torch.Tensor:
    """cuBLAS's int8 product, and one operation of PyTorch for each step before and after it."""
    largest = x.abs().amax(1, keepdim=True).float()
    q, scale_q = (x * (127 / largest)).round().to(torch.int8), largest / 127
    product = torch._int_mm(q, weight.t()).float() * (scale_q * scale.reshape(1, -1))
    return (product if bias is None else product + bias).to(x.dtype)


def _on_gpu(x, weight, scale, bias=None) -> str | None:
    return None if x.is_cuda else "needs a GPU"


def _compiles(x, weight, scale, bias=None) -> str | None:
    return _on_gpu(x, weight, scale) or _int_mm_refusal(x, weight)


PEERS = {
    peer.name: peer
    for peer in (
        Peer("cublas_16_bit", cublas, _on_gpu, distance=0.05),
        Peer("int_mm", int_mm, _compiles),
        # cuBLAS's int8 product between two kernels that torch.compile has fused: one quantises, one scales. What torchao's W8A8 compiles to
        replace(compiled(int_mm, _compiles), name="torch_compile"),
    )
}
