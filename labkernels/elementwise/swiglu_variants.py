"""How each version of `swiglu` is launched, and on what it can run. gate and up (..., cols), or packed in one (..., 2 cols)."""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel
from labkernels.elementwise.rows import THREADS, as_rows, blocks_for, split_in_vectors, vectors_refusal, width_of
from labkernels.elementwise.swiglu_op import halves
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
VECTORS = 2  # a thread


def v1_naive(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    gate, up = halves(gate, up)
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    gate, up = as_rows(gate), as_rows(up)
    rows, cols = gate.shape
    blocks = ceil_div(rows * cols, THREADS)
    kernel(FOLDER / "v1_swiglu_naive.cu", "swiglu_naive", gate.dtype)(blocks, THREADS, (gate, up, y, rows, cols, *gate.stride(), *up.stride()))
    return y


def v2_vectors(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    gate, up = halves(gate, up)
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    gate, up = as_rows(gate), as_rows(up)
    width = width_of(gate, up)
    vectors, row_vectors = split_in_vectors(width, gate, up)
    swiglu = kernel(FOLDER / "v2_swiglu_vectors.cu", "swiglu_vectors", gate.dtype, width, VECTORS)
    swiglu(blocks_for(vectors, VECTORS), THREADS, (gate, up, y, vectors, row_vectors, gate.stride(0), up.stride(0)))
    return y


def _accepts_vectors(gate, up=None) -> str | None:
    return vectors_refusal(*halves(gate, up))


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "one element a thread", FOLDER / "v1_swiglu_naive.cu"),
        Variant("v2_vectors", v2_vectors, "16 bytes a load and store, several on their way", FOLDER / "v2_swiglu_vectors.cu", _accepts_vectors),
    )
}
