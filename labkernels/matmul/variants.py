"""How each version of `matmul` is launched, and on what it can run.

Each takes a (m, k), b (k, n), bias (n,), an activation's name and residual (m, n), as `labkernels.matmul.matmul` does, and returns a new
contiguous (m, n) of a's dtype.
"""

from __future__ import annotations

from pathlib import Path

from labkernels.cuda.variants import ceil_div, kernel, numba_refusal
from labkernels.matmul.launch import activation_number, launch
from labkernels.operation import Variant

FOLDER = Path(__file__).parent


def v1_naive(a, b, bias=None, activation=None, residual=None):
    from labkernels.matmul import v1_naive

    return v1_naive.matmul(a, b)


def v1_naive_cuda(a, b, bias=None, activation=None, residual=None):
    naive = kernel(FOLDER / "v1_naive.cu", "matmul_naive", a.dtype, activation_number(activation))
    grid = ceil_div(a.shape[0], 32), ceil_div(b.shape[1], 8)
    return launch(naive, grid, (32, 8), a, b, b.stride(), bias, residual)


def _numba(a, b, bias=None, activation=None, residual=None) -> str | None:
    if not (bias is activation is residual is None):
        return "the Numba kernel multiplies, and nothing more"
    return numba_refusal(a, steps=a.numel() * b.shape[1])


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "Numba CUDA: one thread an element, a row of a times a column of b", FOLDER / "v1_naive.py", _numba),
        Variant("v1_naive_cuda", v1_naive_cuda, "CUDA C++: one thread an element, neighbours down a column", FOLDER / "v1_naive.cu"),
    )
}
