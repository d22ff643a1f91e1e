"""Scaled matrix multiplication by its definition, in plain PyTorch: every other implementation is compared with this one in float64."""

from __future__ import annotations

import torch


def reference(a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> torch.Tensor:
    """(scale_a * a) @ (b * scale_b) + bias, in the precision of its inputs, whatever out_dtype says."""
    product = a @ b * scale_a.reshape(-1, 1) * scale_b.reshape(1, -1)
    return product if bias is None else product + bias
