"""How each version of `residual_add` is launched, and on what it can run. x and residual (..., cols), bias (cols,)."""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel
from labkernels.elementwise.rows import THREADS, as_rows, blocks_for, split_in_vectors, vectors_refusal, width_of
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
VECTORS = 2  # a thread


def v1_naive(x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, residual = as_rows(x), as_rows(residual)
    rows, cols = x.shape
    add = kernel(FOLDER / "v1_add_naive.cu", "add_naive", x.dtype)
    add(ceil_div(rows * cols, THREADS), THREADS, (x, residual, _dense(bias), y, rows, cols, *x.stride(), *residual.stride()))
    return y


def v2_vectors(x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, residual, bias = as_rows(x), as_rows(residual), _dense(bias)
    width = width_of(x, residual, *([] if bias is None else [bias]))
    vectors, row_vectors = x.numel() // width, x.shape[1] // width
    if bias is None:  # else each vector's column must be known
        vectors, row_vectors = split_in_vectors(width, x, residual)
    add = kernel(FOLDER / "v2_add_vectors.cu", "add_vectors", x.dtype, width, VECTORS)
    add(blocks_for(vectors, VECTORS), THREADS, (x, residual, bias, y, vectors, row_vectors, x.stride(0), residual.stride(0)))
    return y


def _dense(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.contiguous()


def _accepts_vectors(x, residual, bias=None) -> str | None:
    return vectors_refusal(x, residual)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "one element a thread", FOLDER / "v1_add_naive.cu"),
        Variant("v2_vectors", v2_vectors, "16 bytes a load and store, several on their way", FOLDER / "v2_add_vectors.cu", _accepts_vectors),
    )
}
