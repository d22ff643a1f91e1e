"""What else multiplies with few bits a weight: cuBLAS with the weight in 16 bits, PyTorch's tinygemm (the int4 of torchao), its int8 under
torch.compile (as torchao's int8 weights), bitsandbytes' NF4. Each gets the weight in its own format, made once for each weight."""

from __future__ import annotations

import importlib.util
import weakref
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

from labkernels.operation import Peer
from labkernels.quant.formats import QuantizedWeight

_made: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def native(x, weight) -> torch.Tensor:
    """PyTorch's product with the weight rounded to x's dtype."""
    return F.linear(x, weight.dequantize(x.dtype))


def _once(weight: QuantizedWeight, what: str, make: Callable):
    of_weight = _made.setdefault(weight, {})
    if what not in of_weight:
        of_weight[what] = make()
    return of_weight[what]


def cublas(x, weight) -> torch.Tensor:
    """The weight in 16 bits: what one would run without quantisation."""
    return F.linear(x, _once(weight, f"dense {x.dtype}", lambda: weight.dequantize(x.dtype)))


def tinygemm(x, weight) -> torch.Tensor:
    """torch._weight_int4pack_mm, what torchao's int4 weights run. Its numbers mean (q - 8) * scale + zero."""

    def make():
        q = weight.numbers()
        packed = torch.ops.aten._convert_weight_to_int4pack((q[:, ::2] << 4 | q[:, 1::2]).contiguous(), 8)
        scale, zero = weight.scales[..., 0].float(), weight.scales[..., 1].float()
        return packed, torch.stack([scale, (8 - zero) * scale], dim=-1).bfloat16().contiguous()

    packed, scales = _once(weight, "tinygemm", make)
    return torch.ops.aten._weight_int4pack_mm(x, packed, weight.group_size, scales)


def _tinygemm_accepts(x, weight) -> str | None:
    if not x.is_cuda or x.dtype != torch.bfloat16:
        return "takes bfloat16 on a GPU"
    if weight.scheme != "int4":
        return "takes int4"
    if weight.shape[1] % 128 or weight.shape[0] % 8:
        return "takes k that is a multiple of 128 and n that is one of 8"
    return None


@cache
def _compiled_int8(m: int, n: int, k: int, dtype: torch.dtype) -> Callable:
    options = {"coordinate_descent_tuning": True}  # as torchao recommends: for one row it gives a GEMV that converts as it reads
    torch.compiler.reset()  # of one function PyTorch compiles eight shapes at most, and runs further ones as they are
    return torch.compile(lambda x, numbers, scales: torch.mm(x, numbers.t().to(x.dtype)) * scales, dynamic=False, options=options)


def compiled_int8(x, weight) -> torch.Tensor:
    """torchao's int8 weights: their expression under torch.compile."""
    numbers, scales = _once(weight, "int8", lambda: (weight.numbers().contiguous(), weight.scales.to(x.dtype)))
    return _compiled_int8(x.shape[0], *weight.shape, x.dtype)(x, numbers, scales)


def _int8_accepts(x, weight) -> str | None:
    if not x.is_cuda:
        return "needs a GPU"
    if x.shape[0] != 1:
        return "one row of x only"  # its GEMV: each further size would take seconds to compile
    return None if weight.scheme == "int8" else "takes int8"


def bitsandbytes(x, weight) -> torch.Tensor:
    """Their NF4. Quantised numbers quantise to themselves."""
    import bitsandbytes as bnb

    def make():
        return bnb.functional.quantize_4bit(weight.dequantize(x.dtype), blocksize=weight.group_size, quant_type="nf4")

    packed, state = _once(weight, f"bitsandbytes {x.dtype}", make)
    return bnb.matmul_4bit(x, packed.t(), quant_state=state)


def _bitsandbytes_accepts(x, weight) -> str | None:
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    if not x.is_cuda or x.dtype == torch.float32:
        return "takes 16 bits on a GPU"
    if weight.scheme != "nf4" or weight.group_size == 32 or weight.shape[1] % weight.group_size:
        return "takes nf4 in groups of 64 or 128 that fill k"
    return None


PEERS = {
    peer.name: peer
    for peer in (
        Peer("cublas", cublas, lambda x, weight: None if x.is_cuda else "needs a GPU"),
        Peer("tinygemm", tinygemm, _tinygemm_accepts),
        Peer("torch.compile", compiled_int8, _int8_accepts),
        Peer("bitsandbytes", bitsandbytes, _bitsandbytes_accepts),
    )
}
