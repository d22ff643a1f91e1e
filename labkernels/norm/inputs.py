"""Random inputs of the norms, and how exact a result must be."""

from __future__ import annotations

import torch

from labkernels.operation import Tolerance

LAYOUTS = ("contiguous", "rows_apart", "transposed")


def matrix(generator, device, dtype, rows: int, cols: int, magnitude=1.0, offset=0.0, layout="contiguous") -> torch.Tensor:
    """(rows, cols), normally distributed around `offset`. `rows_apart`: the left part of wider rows; `transposed`: columns are dense."""
    stored = {"contiguous": (rows, cols), "rows_apart": (rows, cols + 8), "transposed": (cols, rows)}[layout]
    values = (offset + magnitude * torch.randn(stored, generator=generator, device=generator.device)).to(device, dtype)
    return values.t() if layout == "transposed" else values[:, :cols]


def vector(generator, device, dtype, cols: int, around: float = 0.0) -> torch.Tensor:
    """(cols,), normally distributed around `around`."""
    return (around + torch.randn((cols,), generator=generator, device=generator.device)).to(device, dtype)


def tolerance(dtype: torch.dtype, *, cols, magnitude=1.0, offset=0.0, **_) -> Tolerance:
    """A sum of `cols` float32 terms errs by some sqrt(cols) units; a mean that is subtracted leaves the rounding of what it was taken from."""
    epsilon = torch.finfo(torch.float32).eps
    return Tolerance(relative=epsilon * (16 + 4 * cols**0.5), absolute=epsilon * (16 + 4 * cols**0.5 + 16 * abs(offset) / magnitude))


def gradient_tolerance(dtype: torch.dtype, *, rows, cols, magnitude=1.0, offset=0.0, **_) -> Tolerance:
    """A gradient of x is of the size of 1 / magnitude, and one of weight a sum over rows in which signs cancel."""
    found = tolerance(dtype, cols=cols, magnitude=magnitude, offset=offset)
    return Tolerance(found.relative, found.absolute * 2 * (max(1.0, 1 / magnitude) + rows**0.5))


def shape(rows: int, cols: int, **other) -> dict:
    return {"rows": rows, "cols": cols, **other}


def complete_shape(dtype, *, cols, rows=16_384, **other) -> dict:
    return {"rows": rows, "cols": cols, **other}
