"""How each version of `w8a8_matmul` is launched, and on what it can run.

Each takes what `labkernels.w8a8_matmul.w8a8_matmul` does, with two axes, and returns a new contiguous (m, n) of x's dtype. All of them begin
with the same kernel, which brings the rows of x to bytes.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from labkernels.cuda.kernel import MAX_GRID, Kernel
from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import c_type, ceil_div, hopper_refusal, kernel, processors, vector_width
from labkernels.matmul.hopper import Config
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
BLOCK = (32, 8)  # threads of v1
TILE, STAGES = 128, 3  # of v2: the side of a block's tile, and how many stages of 128 of k it holds

# Microseconds on an H200 that a launch of v3 takes, that each tile of the busiest block adds, and each stage of a tile.
COSTS = {
    Config(128, 256, 2, 4, 4): (0.8, 1.6, 0.66),
    Config(128, 192, 2, 5, 2): (2.0, 1.2, 0.50),
    Config(128, 128, 2, 6, 4): (2.0, 0.6, 0.343),
    Config(128, 96, 2, 6, 4): (0.8, 0.5, 0.319),
    Config(64, 128, 1, 8, 2): (1.8, 0.5, 0.212),
}


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of x (m, k) as bytes, and what a step of each stands for: int8 (m, k), rows on multiples of 16 bytes, and float32 (m,)."""
    m, k = x.shape
    q = torch.empty((m, ceil_div(k, 16) * 16), dtype=torch.int8, device=x.device)[:, :k]
    scales = torch.empty(m, dtype=torch.float32, device=x.device)
    if m:
        width = vector_width(8, x)
        threads = min(256, ceil_div(ceil_div(k, width), 32) * 32) or 32
        cached = min((count for count in (1, 2, 4) if count * threads * width >= k), default=4)
        rows = kernel(FOLDER / "quantise_rows.cu", "quantise_rows", x.dtype, width, cached)
        rows(m, threads, (x, q, scales, k, x.stride(0), q.stride(0)))
    return q, scales


def v1_naive(x, weight, scale, bias=None) -> torch.Tensor:
    (m, k), n = x.shape, weight.shape[0]
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if out.numel():
        q, scale_q = quantise(x)
        grid = ceil_div(n, BLOCK[0]), ceil_div(m, BLOCK[1])
        args = (q, weight, out, m, n, k, q.stride(0), weight.stride(0), scale_q, _dense(scale), bias)
        kernel(FOLDER / "v1_naive.cu", "w8a8_naive", x.dtype)(grid, BLOCK, args)
    return out


def v2_tensor_cores(x, weight, scale, bias=None) -> torch.Tensor:
    (m, k), n = x.shape, weight.shape[0]
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if out.numel():
        q, scale_q = quantise(x)
        args = (q, weight, out, m, n, k, q.stride(0), weight.stride(0), scale_q, _dense(scale), bias)
        blocks = ceil_div(m, TILE) * ceil_div(n, TILE)
        kernel(FOLDER / "v2_tensor_cores.cu", "w8a8_tensor_cores", x.dtype, STAGES)(blocks, 128, args, STAGES * 2 * TILE * 128)
    return out


def v3_hopper(x, weight, scale, bias=None) -> torch.Tensor:
    return configured(best_config(x.shape[0], weight.shape[0], ceil_div(x.shape[1], 128), processors(x)), x, weight, scale, bias)


def best_config(m: int, n: int, stages: int, at_once: int) -> Config:
    """The configuration of v3 that should take the least time for a result (m, n) and so many stages of k."""

    def cost(config: Config) -> float:
        launch, tile, stage = COSTS[config]
        return launch + config.blocks(m, n, at_once)[1] * (tile + stage * stages)

    return min(COSTS, key=cost)


def configured(config: Config, x, weight, scale, bias=None) -> torch.Tensor:
    """v3 with this configuration."""
    (m, k), n = x.shape, weight.shape[0]
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    q, scale_q = quantise(x)
    return multiply(config, q, weight, scale_q, scale, bias, out)


def multiply(config: Config, q, weight, scale_q, scale, bias, out) -> torch.Tensor:
    """The product of v3 alone, of bytes, into `out`."""
    (m, k), n, slab = q.shape, weight.shape[0], 32 if config.columns % 64 else 64
    maps = tensor_map(q, (config.rows, 128), 128), tensor_map(weight, (config.columns, 128), 128), tensor_map(out, (64, slab), 2 * slab)
    args = (*maps, m, n, k, scale_q, _dense(scale), bias, config.band)
    blocks, _ = config.blocks(m, n, processors(q))
    _hopper(config, out.dtype)(blocks, 128 * (config.consumers + 1), args, config.shared_mem)
    return out


@functools.lru_cache(None)
def _hopper(config: Config, dtype: torch.dtype) -> Kernel:
    sizes = (config.rows, config.columns, config.consumers, config.stages, config.slabs)
    return Kernel(FOLDER / "v3_hopper.cu", f"w8a8_hopper<{c_type(dtype)}, {', '.join(map(str, sizes))}>")


def _dense(scale: torch.Tensor) -> torch.Tensor:
    return scale.reshape(-1).contiguous()


def _at_most_rows(x, weight, scale, bias=None) -> str | None:
    most = BLOCK[1] * MAX_GRID[1]
    return f"takes at most {most} rows" if x.shape[0] > most else None


def _in_pieces(x, weight, scale, bias=None) -> str | None:
    if weight.shape[1] % 16 or weight.stride(0) % 16 or weight.data_ptr() % 16:
        return "takes k in multiples of 16, and rows of the weight that begin on multiples of 16 bytes"
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or higher"
    return None


def _on_hopper(x, weight, scale, bias=None) -> str | None:
    if weight.shape[1] == 0:
        return "takes k from 1"
    if weight.stride(0) % 16 or weight.data_ptr() % 16:
        return "takes rows of the weight that begin on multiples of 16 bytes"
    if weight.shape[0] % 8:
        return "takes n that is a multiple of 8"
    if bias is not None and bias.data_ptr() % 4:
        return "takes a bias that begins on a multiple of 4 bytes"
    return hopper_refusal(x)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "a kernel brings x to bytes; one thread an element multiplies them", FOLDER / "v1_naive.cu", _at_most_rows),
        Variant(
            "v2_tensor_cores",
            v2_tensor_cores,
            "mma.sync of bytes, summed in int32; tiles by cp.async and ldmatrix",
            FOLDER / "v2_tensor_cores.cu",
            _in_pieces,
        ),
        Variant(
            "v3_hopper",
            v3_hopper,
            "TMA and wgmma of bytes: twice the multiply-adds of bf16 for the same bytes moved",
            FOLDER / "v3_hopper.cu",
            _on_hopper,
        ),
    )
}
