"""How v7 of `quant_matmul`, x in registers, is launched on Hopper: how many blocks share k and tiles, and on what it can run."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from labkernels.cuda import lasting
from labkernels.cuda.kernel import Kernel
from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import c_type, ceil_div, hopper_refusal, processors
from labkernels.operation import Variant
from labkernels.quant.early_launch import launch
from labkernels.quant.formats import FOUR_BIT, QuantizedWeight
from labkernels.quant.v5_variants import for_copies
from labkernels.quant.v6_variants import FORMATS, TABLE_BYTES, few_rows_refusal

FILE = Path(__file__).with_name("v7_resident.cu")
MOST_ROWS = 16  # of x
MOST_SPLITS = 16  # blocks that share k
HALF_SHARED = 110 * 1024  # bytes of dynamic shared memory with which two blocks fit a multiprocessor


@dataclass(frozen=True)
class Resident:
    """`warps` of a block, each with `units` of 128 bytes of a row, and `splits` blocks of a team share k; each warp has `ahead` steps of
    16 * `tiles` rows on their way, a team takes `steps` of them, and adds up the sums of `batch` at a time."""

    warps: int
    units: int
    ahead: int
    splits: int
    steps: int
    clustered: bool = True  # a team's blocks meet in their shared memory, or the last one adds up in memory
    batch: int = 2
    tiles: int = 2

    @property
    def rows(self) -> int:
        return 16 * self.tiles


def v7_resident(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    return resident(resident_for(x, weight), x, weight)


def resident(config: Resident, x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """v7 with this configuration."""
    (m, k), n = x.shape, weight.shape[0]
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    x = for_copies(F.pad(x, (0, -k % 8)) if k % 8 else x)
    four_bit, columns = weight.scheme in FOUR_BIT, ceil_div(m, 8)
    scales = weight.scales.view(torch.int32).view(-1, n) if weight.scheme == "int4" else weight.scales
    map_w = tensor_map(weight.packed, (config.rows, 32 if four_bit else 128), 128)
    map_scales = tensor_map(scales, (256 * config.units // weight.group_size, config.rows)) if four_bit else map_w
    teams = ceil_div(ceil_div(n, config.rows), config.steps)
    steps = ceil_div(ceil_div(n, config.rows), teams)
    workspace = counters = None
    clustered = config.clustered and config.splits > 1
    if config.splits > 1 and not clustered:
        workspace = torch.empty(teams * config.splits * steps * columns * 8 * config.rows, dtype=torch.float32, device=x.device)
        counters = lasting.counters(teams, x.device)
    row_scales = None if four_bit else scales
    args = (x, map_w, map_scales, row_scales, weight.codebook, y, m, n, x.shape[1], x.stride(0), row_units(weight), workspace, counters)
    made = _kernel(x.dtype, weight.scheme, weight.group_size or 0, columns, replace(config, steps=0))
    shared = shared_bytes(config, weight.scheme, weight.group_size, columns)
    launch(made, weight, (config.splits, teams), 32 * config.warps, args, shared, (config.splits, 1) if clustered else None)
    return y


def row_units(weight: QuantizedWeight) -> int:
    return ceil_div(weight.packed.shape[1] * weight.packed.element_size(), 128)


def shared_bytes(config: Resident, scheme: str, group_size: int | None, columns: int) -> int:
    """Dynamic shared memory of v7_resident.cu."""
    scales = 256 * config.units // group_size * config.rows * (4 if scheme == "int4" else 2) if group_size else 0
    sums = 32 * config.rows * columns * (config.warps * config.batch + (config.steps if config.clustered and config.splits > 1 else 0))
    slots = config.warps * config.ahead * (128 * config.rows * config.units + ceil_div(scales, 128) * 128)
    return slots + sums + TABLE_BYTES * (scheme in ("nf4", "codebook"))


def resident_for(x: torch.Tensor, weight: QuantizedWeight) -> Resident | None:
    """As many blocks as two for each multiprocessor, or a few times as many; None if k is longer than what MOST_SPLITS of them hold."""
    at_once = processors(x) if x.is_cuda else 2
    return _resident_for(ceil_div(x.shape[0], 8), weight.scheme, weight.group_size, weight.shape[0], row_units(weight), at_once, x.is_cuda)


@functools.lru_cache(4096)
def _resident_for(columns: int, scheme: str, group_size: int | None, n: int, units: int, at_once: int, on_gpu: bool) -> Resident | None:
    int4, four_bit = scheme == "int4", scheme in FOUR_BIT
    warps = 2 if not on_gpu else 6 if int4 and group_size == 32 and columns == 2 else 8  # so that registers suffice for two blocks
    config = Resident(warps, 1 if four_bit else 2, 3 if four_bit and not int4 else 2, 1, 1, tiles=2 if int4 else 1)
    splits = ceil_div(units, warps * config.units)
    if splits > MOST_SPLITS:
        return None
    all_steps, teams = ceil_div(n, config.rows), max(1, 2 * at_once // splits)
    for most in (16, 12, 8, 4):  # of a team's steps, whose sums wait in shared memory
        waves = ceil_div(ceil_div(all_steps, teams), most)
        steps = ceil_div(all_steps, teams * waves)
        for batch in (2, 1) if steps > 4 else (1,):
            chosen = replace(config, splits=splits, steps=steps, clustered=splits == 2, batch=batch)
            if shared_bytes(chosen, scheme, group_size, columns) <= HALF_SHARED:
                return chosen
    return None


@functools.lru_cache(None)
def _kernel(dtype: torch.dtype, scheme: str, group_size: int, columns: int, config: Resident) -> Kernel:
    sizes = (group_size, columns, config.tiles, config.units, config.warps, config.ahead, config.batch, config.splits, str(config.clustered).lower())
    return Kernel(FILE, f"quant_matmul_resident<{FORMATS[scheme]}, {c_type(dtype)}, {', '.join(map(str, sizes))}>")


def _accepts(x: torch.Tensor, weight: QuantizedWeight) -> str | None:
    if refused := few_rows_refusal(x, weight, MOST_ROWS):
        return refused
    if resident_for(x, weight) is None:
        return "takes k that the warps of 16 blocks can hold in their registers"
    return hopper_refusal(x)


VARIANTS = {
    variant.name: variant
    for variant in (Variant("v7_resident", v7_resident, "x stays in registers as fragments; W streams past it by TMA and ldmatrix", FILE, _accepts),)
}
