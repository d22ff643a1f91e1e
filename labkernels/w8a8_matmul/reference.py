"""W8A8 multiplication by its definition, in plain PyTorch: every other implementation is compared with this one in float64."""

from __future__ import annotations

import torch

SMALLEST = 1e-30  # rows without a larger magnitude are zeros


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (rows, k) as bytes and a float32 scale a row: q = round(x * (127 / max |x|)), half to even.

    127 / max |x| is rounded to float32, its product with x is not rounded, which float64 can do here, and a fused multiply-add.
    """
    x = x.float()
    largest = x.abs().amax(1) if x.shape[1] else x.new_zeros(len(x))
    most = torch.full_like(largest, 127)  # 127 / largest in PyTorch is largest.reciprocal() * 127: two roundings
    inverse = torch.where(largest < SMALLEST, 0.0, most / largest)
    q = (x.double() * inverse[:, None].double()).round()
    finite = largest.isfinite()
    q = torch.where(finite[:, None], q, 0).to(torch.int8)
    return q, torch.where(finite, largest / most, torch.nan)


def reference(x, weight, scale, bias=None) -> torch.Tensor:
    """round(127 x / max |x|) @ weight.T times both scales, + bias. The sums of bytes are those of float64, and exact."""
    q, scale_q = quantise(x)
    product = (q.double() @ weight.double().t()).to(scale.dtype) * (scale_q.to(scale.dtype)[:, None] * scale.reshape(1, -1))
    return product if bias is None else product + bias
