"""How each version of `sum` is launched, and on what it can run.

Each takes x (n,) float32 and returns a float32 tensor of no axes on x's device.
"""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel, numba_refusal
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
THREADS = 256
BLOCKS = 1024  # of v3, at most: enough threads for every GPU, few enough that one block can add up their sums


def v1_naive(x: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float32, device=x.device)
    kernel(FOLDER / "v1_naive.cu", "sum_atomic")(max(1, ceil_div(len(x), THREADS)), THREADS, (x, total, len(x)))
    return total


def v1_grid_stride(x: torch.Tensor) -> torch.Tensor:
    from labkernels.sum import v1_grid_stride

    return v1_grid_stride.sum(x)


def v2_tree(x: torch.Tensor) -> torch.Tensor:
    tree = kernel(FOLDER / "v2_tree.cu", "sum_tree")
    while True:
        partial = x.new_empty(max(1, ceil_div(len(x), THREADS)))
        tree(len(partial), THREADS, (x, partial, len(x)))
        if len(partial) == 1:
            return partial.reshape(())
        x = partial


def v3_warp(x: torch.Tensor) -> torch.Tensor:
    partial = x.new_empty(min(BLOCKS, max(1, ceil_div(len(x), 4 * THREADS))))
    _add_up(x, partial)
    if len(partial) > 1:
        x, partial = partial, x.new_empty(1)
        _add_up(x, partial)
    return partial.reshape(())


def _add_up(x: torch.Tensor, partial: torch.Tensor) -> None:
    width = 4 if x.stride(0) == 1 and x.data_ptr() % 16 == 0 else 1
    kernel(FOLDER / "v3_warp.cu", "sum_warp", width)(len(partial), THREADS, (x, partial, len(x), x.stride(0)))


def _contiguous(x: torch.Tensor) -> str | None:
    return None if x.is_contiguous() else "takes a contiguous x"


def _numba(x: torch.Tensor) -> str | None:
    return numba_refusal(x, steps=len(x))


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "an atomic addition for every element", FOLDER / "v1_naive.cu", _contiguous),
        Variant(
            "v1_grid_stride",
            v1_grid_stride,
            "Numba CUDA: each thread adds up a share, then one atomic addition",
            FOLDER / "v1_grid_stride.py",
            _numba,
        ),
        Variant("v2_tree", v2_tree, "pairs in shared memory: 8 steps for 256 elements", FOLDER / "v2_tree.cu", _contiguous),
        Variant("v3_warp", v3_warp, "16 bytes a load, registers and five shuffles, two barriers in all", FOLDER / "v3_warp.cu"),
    )
}
