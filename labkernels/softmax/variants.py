"""How each version of `softmax` is launched, and on what it can run.

Each takes x (rows, cols), float32 or bfloat16, and returns a new contiguous tensor of x's shape and dtype.
"""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel, vector_width
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
WARPS = 4  # a block, where a warp owns a row
REGISTERS = 32  # elements of a row that one thread holds, at most


def v1_three_pass(x: torch.Tensor) -> torch.Tensor:
    return _one_warp_a_row("v1_three_pass.cu", "softmax_three_pass", x)


def v2_online(x: torch.Tensor) -> torch.Tensor:
    return _one_warp_a_row("v2_online.cu", "softmax_online", x)


def v3_registers(x: torch.Tensor) -> torch.Tensor:
    rows, cols = x.shape
    y = torch.empty((rows, cols), dtype=x.dtype, device=x.device)
    width = vector_width(16 // x.element_size(), x)
    for threads in (32, 256, 1024):
        vectors = _power_of_two(ceil_div(cols, threads * width))
        if vectors * width <= REGISTERS:
            softmax = kernel(FOLDER / "v3_registers.cu", "softmax_registers", x.dtype, threads, vectors, width)
            break
    else:
        softmax = kernel(FOLDER / "v3_registers.cu", "softmax_streamed", x.dtype, width)
    if y.numel() > 0:
        rows_per_block = WARPS if threads == 32 else 1
        softmax(ceil_div(rows, rows_per_block), threads * rows_per_block, (x, y, rows, cols, x.stride(0)))
    return y


def _one_warp_a_row(file: str, name: str, x: torch.Tensor) -> torch.Tensor:
    rows, cols = x.shape
    y = torch.empty((rows, cols), dtype=x.dtype, device=x.device)
    if y.numel() > 0:
        kernel(FOLDER / file, name, x.dtype)(ceil_div(rows, WARPS), 32 * WARPS, (x, y, rows, cols, *x.stride()))
    return y


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def _neighbouring_columns(x: torch.Tensor) -> str | None:
    return None if x.stride(1) == 1 or x.shape[1] == 1 else "takes rows whose elements are neighbours in memory"


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_three_pass", v1_three_pass, "the maximum, the sum, the result: three walks over a row", FOLDER / "v1_three_pass.cu"),
        Variant("v2_online", v2_online, "a running maximum and sum in one walk, a second writes the result", FOLDER / "v2_online.cu"),
        Variant(
            "v3_registers",
            v3_registers,
            "the row is read once and stays in registers",
            FOLDER / "v3_registers.cu",
            _neighbouring_columns,
        ),
    )
}
