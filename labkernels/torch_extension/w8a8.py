"""The operator `torch.ops.labkernels.w8a8_matmul(x, weight, scale, bias) -> Tensor`, for `torch.compile`: as labkernels.w8a8_matmul.w8a8_matmul."""

from __future__ import annotations

import torch

from labkernels.errors import ArgumentError
from labkernels.torch_extension.operators import define
from labkernels.w8a8_matmul.op import OP


def w8a8_matmul(x, weight, scale, bias=None) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1]) if x.dim() != 2 else x
    dense = (given if given is None or given.stride(-1) == 1 else given.contiguous() for given in (rows, weight, bias))
    rows, weight, bias = dense
    return OP.run(x=rows, weight=weight, scale=scale, bias=bias).reshape(*x.shape[:-1], weight.shape[0])


def _fake(x, weight, scale, bias=None) -> torch.Tensor:
    if x.dim() and x.dtype not in (torch.bfloat16, torch.float16):
        raise ArgumentError(f"w8a8_matmul: x is {x.dtype}; it must be bfloat16 or float16")
    if x.shape[-1] != weight.shape[-1]:
        raise ArgumentError(f"w8a8_matmul: x has {x.shape[-1]} columns, weight has {weight.shape[-1]}; both must be equal")
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


define("w8a8_matmul", "(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None) -> Tensor", w8a8_matmul, _fake)
