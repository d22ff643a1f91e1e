"""How each version of `symmetric_matmul` is launched, and on what it can run."""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.kernel import MAX_GRID
from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import ceil_div, hopper_refusal, kernel, processors
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
BLOCK = (32, 8)  # threads of v1
TILE = 32  # of v2
SIZE, STAGES, SLABS = 128, 6, 4  # of v3: rows and columns of a tile, stages of k in flight, pieces of a tile on their way out


def v1_naive(x, c=None, alpha=1.0, beta=1.0) -> torch.Tensor:
    grid = ceil_div(x.shape[-2], BLOCK[0]), ceil_div(x.shape[-2], BLOCK[1]), _batches(x)
    return _launch("v1_naive.cu", "symmetric_naive", grid, BLOCK, x, c, alpha, beta)


def v2_tiled(x, c=None, alpha=1.0, beta=1.0) -> torch.Tensor:
    side = ceil_div(x.shape[-2], TILE)
    return _launch("v2_tiled.cu", "symmetric_tiled", (side * (side + 1) // 2, 1, _batches(x)), (TILE, TILE), x, c, alpha, beta)


def v3_hopper(x, c=None, alpha=1.0, beta=1.0) -> torch.Tensor:
    out = _result(x)
    if not out.numel():
        return out
    batches, (m, k) = _batches(x), x.shape[-2:]
    depth = 128 // x.element_size()
    maps = tensor_map(x if x.dim() == 3 else x[None], (1, SIZE, depth), 128), tensor_map(out.view(batches, m, m), (1, 64, 64), 128)
    side = ceil_div(m, SIZE)
    blocks = min(processors(x), batches * side * (side + 1) // 2)
    shared = STAGES * 2 * SIZE * 128 + SLABS * 64 * 128 + 16 * STAGES  # what Layout (matmul/hopper.cuh) lays out
    kernel(FOLDER / "v3_hopper.cu", "symmetric_hopper", x.dtype, STAGES, SLABS)(blocks, 384, (*maps, c, m, k, batches, float(alpha), float(beta)), shared)
    return out


def _launch(file: str, name: str, grid, block, x, c, alpha, beta) -> torch.Tensor:
    out = _result(x)
    if out.numel():
        strides = (x.stride(0) if x.dim() == 3 else 0, x.stride(-2))
        kernel(FOLDER / file, name, x.dtype)(grid, block, (x, c, out, *x.shape[-2:], *strides, float(alpha), float(beta)))
    return out


def _result(x: torch.Tensor) -> torch.Tensor:
    return torch.empty((*x.shape[:-1], x.shape[-2]), dtype=x.dtype, device=x.device)


def _batches(x: torch.Tensor) -> int:
    return x.shape[0] if x.dim() == 3 else 1


def _simple(x, c=None, alpha=1.0, beta=1.0) -> str | None:
    if _batches(x) > MAX_GRID[2]:
        return f"takes at most {MAX_GRID[2]} matrices"
    return f"takes at most {BLOCK[1] * MAX_GRID[1]} rows" if x.shape[-2] > BLOCK[1] * MAX_GRID[1] else None


def _on_hopper(x, c=None, alpha=1.0, beta=1.0) -> str | None:
    if x.dtype not in (torch.bfloat16, torch.float16):
        return "takes bfloat16 and float16"
    if x.shape[-1] == 0 or x.shape[-2] % 8:
        return "takes k from 1 and m in multiples of 8"
    if x.data_ptr() % 16 or any(stride * x.element_size() % 16 for stride in x.stride()[:-1]):
        return "takes rows that lie on 16 bytes"
    if c is not None and c.data_ptr() % 4:
        return "takes a c that begins on a multiple of 4 bytes"
    return hopper_refusal(x)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "one thread an element of the upper half, which writes both places", FOLDER / "v1_naive.cu", _simple),
        Variant("v2_tiled", v2_tiled, "tiles of the upper half alone, stored twice through shared memory", FOLDER / "v2_tiled.cu", _simple),
        Variant("v3_hopper", v3_hopper, "TMA and wgmma; each tile stored twice by the copy engine", FOLDER / "v3_hopper.cu", _on_hopper),
    )
}
