"""How each version of `swiglu_backward` is launched, and on what it can run.

Each returns (grad_gate, grad_up) of grad's shape. Where gate holds both, they are the halves of one new tensor of its shape.
"""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel
from labkernels.elementwise.rows import THREADS, as_rows, blocks_for, split_in_vectors, vectors_refusal, width_of
from labkernels.elementwise.swiglu_op import halves
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
VECTORS = 1  # a thread


def v1_naive(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    results = _results(gate, up)
    grad, gate, up, grad_gate, grad_up = map(as_rows, (grad, *halves(gate, up), *results))
    rows, cols = grad.shape
    backward = kernel(FOLDER / "v1_swiglu_naive.cu", "swiglu_backward_naive", gate.dtype)
    strides = (*grad.stride(), *gate.stride(), *up.stride(), grad_gate.stride(0))
    backward(ceil_div(rows * cols, THREADS), THREADS, (grad, gate, up, grad_gate, grad_up, rows, cols, *strides))
    return results


def v2_vectors(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    results = _results(gate, up)
    tensors = tuple(map(as_rows, (grad, *halves(gate, up), *results)))
    width = width_of(*tensors)
    vectors, row_vectors = split_in_vectors(width, *tensors)
    backward = kernel(FOLDER / "v2_swiglu_vectors.cu", "swiglu_backward_vectors", gate.dtype, width, VECTORS)
    backward(blocks_for(vectors, VECTORS), THREADS, (*tensors, vectors, row_vectors, *(tensor.stride(0) for tensor in tensors[:4])))
    return results


def _results(gate: torch.Tensor, up: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for both gradients, apart or, as packed inputs are, side by side."""
    new = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    return halves(new, None if up is None else torch.empty(gate.shape, dtype=gate.dtype, device=gate.device))


def _accepts_vectors(grad, gate, up=None) -> str | None:
    return vectors_refusal(grad, *halves(gate, up))


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "one element a thread", FOLDER / "v1_swiglu_naive.cu"),
        Variant("v2_vectors", v2_vectors, "16 bytes a load and store, several on their way", FOLDER / "v2_swiglu_vectors.cu", _accepts_vectors),
    )
}
