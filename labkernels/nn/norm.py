"""`RMSNorm` and `LayerNorm` as layers: PyTorch's, by the kernels of this package."""

from __future__ import annotations

import torch
from torch import nn

from labkernels.errors import ArgumentError
from labkernels.norm import add_rms_norm, layer_norm, rms_norm


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, by `lk.functional.rms_norm`.

        norm = RMSNorm(4096).to("cuda", torch.bfloat16)
        y = norm(x)                              # (..., dim) -> the same shape
        y, stream = norm(x, residual)            # the sum x + residual, and its norm, in one pass: `lk.functional.add_rms_norm`

    One parameter, `weight` (dim,), ones at first: state_dict() is that of torch.nn.RMSNorm. Raises ArgumentError that names the argument.
    """

    def __init__(self, dim: int, eps: float = 1e-5, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        super().__init__()
        self.dim, self.eps = _positive("RMSNorm", dim), eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        _expect_dim("RMSNorm", x, self.dim)
        if residual is None:
            return rms_norm(x, self.weight, self.eps)
        return add_rms_norm(x, residual, self.weight, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}"


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, by `lk.functional.layer_norm`.

    Parameters `weight` (dim,), ones at first, and, unless bias=False, `bias` (dim,), zeros: state_dict() is that of torch.nn.LayerNorm.
    """

    def __init__(
        self, dim: int, eps: float = 1e-5, bias: bool = True, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ):
        super().__init__()
        self.dim, self.eps = _positive("LayerNorm", dim), eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))
        self.register_parameter("bias", nn.Parameter(torch.zeros(dim, device=device, dtype=dtype)) if bias else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _expect_dim("LayerNorm", x, self.dim)
        return layer_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}, bias={self.bias is not None}"


def _positive(layer: str, dim: int) -> int:
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise ArgumentError(f"{layer}: dim is {dim!r}; it must be an int of at least 1")
    return dim


def _expect_dim(layer: str, x: torch.Tensor, dim: int) -> None:
    if x.dim() == 0 or x.shape[-1] != dim:
        raise ArgumentError(f"{layer}: x has shape {tuple(x.shape)}; its last axis must be dim = {dim}")
