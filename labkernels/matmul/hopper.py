"""How v7 of `matmul` is launched: tiles, stages and clusters, which of them for which sizes, and on what it can run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from labkernels.cuda.kernel import Kernel
from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import ceil_div, hopper_refusal, processors
from labkernels.matmul.launch import activation_number
from labkernels.operation import Variant

FILE = Path(__file__).with_name("v7_hopper.cu")
TYPES = {torch.bfloat16: "__nv_bfloat16", torch.float16: "__half", torch.float8_e4m3fn: "__nv_fp8_e4m3"}
STAGE_BYTES = 128  # of k, in a row


@dataclass(frozen=True)
class Config:
    """A block's tile of the result, `rows` x `columns`; `consumers` warpgroups that multiply; `stages` of k in flight; `slabs` of the result on
    their way out; `cluster` blocks, one above the other, that share their columns of b; tiles are taken in bands of `band` rows of tiles."""

    rows: int
    columns: int
    consumers: int
    stages: int
    slabs: int
    cluster: int = 1
    band: int = 16

    @property
    def shared_mem(self) -> int:
        """sizeof what Layout (hopper.cuh) lays out."""
        return self.stages * (self.rows + self.columns) * STAGE_BYTES + self.slabs * 64 * STAGE_BYTES + 16 * self.stages

    def blocks(self, m: int, n: int, at_once: int) -> tuple[int, int]:
        """How many blocks to launch where `at_once` can run, and how many tiles the busiest of them has. `n` counts the columns of b."""
        tiles, clusters = ceil_div(m, self.rows * self.cluster) * ceil_div(n, self.columns), at_once // self.cluster
        return min(clusters, tiles) * self.cluster, ceil_div(tiles, clusters)


# Microseconds on an H200 that a launch takes, that each tile of the busiest block adds, and each stage of a tile: fitted to 40 shapes.
COSTS = {
    Config(128, 256, 2, 4, 4): (0.6, 1.6, 0.668),
    Config(128, 224, 2, 4, 4): (0.0, 1.2, 0.603),
    Config(128, 192, 2, 5, 2): (0.0, 0.8, 0.531),
    Config(128, 160, 2, 5, 4): (0.4, 0.6, 0.446),
    Config(128, 128, 2, 6, 4): (1.4, 0.2, 0.366),
    Config(128, 96, 2, 6, 4): (0.8, 0.0, 0.302),
    Config(64, 192, 1, 6, 2): (0.8, 0.7, 0.287),
    Config(64, 128, 1, 8, 2): (1.2, 0.0, 0.219),
}


def best_config(m: int, n: int, stages: int, b_rows: bool, at_once: int) -> Config:
    """The configuration that should take the least time for a result (m, n) and so many stages of k."""

    def cost(config: Config) -> float:
        launch, tile, stage = COSTS[config]
        return launch + config.blocks(m, n, at_once)[1] * (tile + stage * stages)

    # b by rows comes in panels of 64 columns
    return min((config for config in COSTS if not b_rows or config.columns % 64 == 0), key=cost)


def v7_hopper(a, b, bias=None, activation=None, residual=None) -> torch.Tensor:
    stages = ceil_div(a.shape[1] * a.element_size(), STAGE_BYTES)
    config = best_config(a.shape[0], b.shape[1], stages, _by_rows(b), processors(a))
    return configured(config, a, b, bias, activation, residual)


def gated(a, b, bias=None, activation="silu") -> torch.Tensor:
    """activation(a @ b_gate + bias_gate) * (a @ b_up + bias_up), (m, n), where b (k, 2 n) and bias (2 n,) have all gates before all ups. n is a
    multiple of 8, columns of b are dense; for the rest as `accepts` says."""
    stages = ceil_div(a.shape[1] * a.element_size(), STAGE_BYTES)
    at_once, (m, columns) = processors(a), (a.shape[0], b.shape[1])
    halved = {config: costs for config, costs in COSTS.items() if config.columns % 128 == 0 or config.columns == 192 and config.rows == 128}

    def cost(config: Config) -> float:
        launch, tile, stage = halved[config]
        return launch + config.blocks(m, columns, at_once)[1] * (tile + stage * stages)

    return configured(min(halved, key=cost), a, b, bias, activation, gated=True)


@functools.lru_cache(None)
def _kernel(config: Config, dtype, out_dtype, a_columns: bool, b_rows: bool, finish: bool, activation: int, gated: bool = False) -> Kernel:
    sizes = [config.rows, config.columns, config.consumers, config.stages, config.slabs, config.cluster]
    flags = [str(flag).lower() for flag in (a_columns, b_rows, finish)]
    arguments = [TYPES[dtype], TYPES[out_dtype], *sizes, *flags, activation, *["true"] * gated]
    return Kernel(FILE, f"matmul_hopper<{', '.join(map(str, arguments))}>")


def configured(
    config: Config, a, b, bias=None, activation=None, residual=None, scale_a=None, scale_b=None, out_dtype=None, gated=False
) -> torch.Tensor:
    """v7 with this configuration. For fp8, the sum at (i, j) is multiplied by scale_a[i] * scale_b[j], both float32. `gated` as above."""
    (m, k), n = a.shape, b.shape[1] // (2 if gated else 1)
    out = torch.empty((m, n), dtype=out_dtype or a.dtype, device=a.device)
    if not out.numel():
        return out
    a_columns, b_rows = not _by_rows(a), _by_rows(b)
    halves = 2 if gated else 1
    depth, slab = STAGE_BYTES // a.element_size(), 32 if config.columns // halves % 64 else 64
    map_a = tensor_map(a.t(), (depth, 64), 128) if a_columns else tensor_map(a, (config.rows, depth), 128)
    map_b = tensor_map(b, (depth, 64), 128) if b_rows else tensor_map(b.t(), (config.columns // config.cluster // halves, depth), 128)
    map_c = tensor_map(out, (64, slab), 2 * slab)
    bias, residual = _in_pairs(bias), _in_boxes(residual)
    map_residual = map_c if residual is None else tensor_map(residual, (config.rows, slab), 2 * slab)
    finish = any(given is not None for given in (bias, None if gated else activation, residual, scale_a))
    kernel = _kernel(config, a.dtype, out.dtype, a_columns, b_rows, finish, activation_number(activation), *[True] * gated)
    args = (map_a, map_b, map_c, map_residual, m, n, k, scale_a, scale_b, bias, int(residual is not None), config.band)
    blocks, _ = config.blocks(m, n * halves, processors(a))
    kernel(blocks, 128 * (config.consumers + 1), args, config.shared_mem, config.cluster if config.cluster > 1 else None)
    return out


def _by_rows(matrix: torch.Tensor) -> bool:
    """Are rows dense? Where a matrix is one column wide, both would do."""
    return matrix.stride(1) == 1 and (matrix.shape[1] > 1 or matrix.stride(0) != 1)


def _in_pairs(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The same values where the kernel can read two neighbours at a time."""
    return tensor if tensor is None or tensor.data_ptr() % 4 == 0 else tensor.clone(memory_format=torch.contiguous_format)


def _in_boxes(residual: torch.Tensor | None) -> torch.Tensor | None:
    """The same values where the copy engine can read them: rows on 16 bytes, each in a place of its own."""
    if residual is None or (residual.data_ptr() % 16 == 0 and (len(residual) == 1 or (residual.stride(0) and residual.stride(0) % 8 == 0))):
        return residual
    return residual.clone(memory_format=torch.contiguous_format)


def accepts(a, b, bias=None, activation=None, residual=None) -> str | None:
    if a.dtype not in (torch.bfloat16, torch.float16):
        return "takes bfloat16 and float16"
    if a.shape[1] == 0 or b.shape[1] % 8:
        return "takes k from 1 and n in multiples of 8"
    for name, tensor in (("a", a), ("b", b)):
        distance = tensor.stride(0) if _by_rows(tensor) else tensor.stride(1)
        if tensor.numel() and (min(tensor.stride()) != 1 or distance * tensor.element_size() % 16 or tensor.data_ptr() % 16):
            return f"takes rows or columns that lie on 16 bytes, {name}'s do not"
    return hopper_refusal(a)


V7 = Variant("v7_hopper", v7_hopper, "TMA and wgmma: a thread that copies, warpgroups that multiply, blocks that stay", FILE, accepts)
