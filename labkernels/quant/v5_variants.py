"""How v5 of `quant_matmul` is launched on Hopper: tiles, stages and parts, which of them for how many rows of x, and on what it can run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
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

FILE, FEW_ROWS_FILE = (Path(__file__).with_name(name) for name in ("v5_hopper.cu", "v5_few_rows.cu"))
SCHEMES = {"int4": "kInt4", "nf4": "kCodebook", "codebook": "kCodebook", "int8": "kInt8", "fp8": "kFp8"}
STEP = 128  # of k
MOST_SHARED = 226 * 1024  # bytes of a block's shared memory, beside a few that the kernels declare


@dataclass(frozen=True)
class Few:
    """v5_few_rows.cu: a block's tile is 64 * `consumers` rows of the weight and `tokens` rows of x, at most `stages` of 128 of k are in flight,
    `splits` blocks share k, two in a cluster, more through memory, and so many `blocks` share a multiprocessor."""

    consumers: int
    tokens: int
    splits: int
    blocks: int = 1
    stages: int = 8

    @property
    def rows(self) -> int:
        return 64 * self.consumers

    def copies(self, scheme: str) -> int:
        """How often a codebook's table of pairs stands in shared memory: once for each bank, or for every fourth."""
        return 0 if SCHEMES[scheme] != "kCodebook" else 32 if self.blocks == 1 else 8

    def memory(self, scheme: str, group_size: int | None) -> tuple[int, int]:
        """How many stages fit, and the bytes of what Memory (hopper_weights.cuh) lays out with them."""
        stage, rest = stage_bytes(scheme, group_size, self.rows, self.tokens, STEP), 1024 * self.copies(scheme)
        stages = min(self.stages, (MOST_SHARED // self.blocks - 1024 * (self.blocks - 1) - rest) // stage)
        return stages, stages * stage + rest


@dataclass(frozen=True)
class Config:
    """v5_hopper.cu: a block's tile is 64 * `consumers` rows of the weight and `tokens` rows of x. An H200 took `step_us` microseconds for 128
    of k of it. At most `stages` of `depth` of k are in flight, and `slabs` of 32 rows of the result on their way out. Tiles are taken in bands
    of `band` rows of tiles, or `splits` blocks of a cluster share one's k."""

    consumers: int
    tokens: int
    depth: int
    step_us: float
    stages: int = 8
    slabs: int = 4
    band: int = 16
    splits: int = 1

    @property
    def rows(self) -> int:
        return 64 * self.consumers

    def copies(self, scheme: str) -> int:
        return 0 if SCHEMES[scheme] != "kCodebook" else 16

    def memory(self, scheme: str, group_size: int | None) -> tuple[int, int]:
        """How many stages fit, and the bytes of the slabs and of what Memory (hopper_weights.cuh) lays out with them."""
        stage = stage_bytes(scheme, group_size, self.rows, self.tokens, self.depth)
        rest = self.slabs * 32 * 128 + 1024 * self.copies(scheme)
        stages = min(self.stages, (MOST_SHARED - rest) // stage)
        return stages, stages * stage + rest


def stage_bytes(scheme: str, group_size: int | None, rows: int, tokens: int, depth: int) -> int:
    """Of Memory (hopper_weights.cuh): a stage of x, W and scales, with its two barriers."""
    four_bit = scheme in FOUR_BIT
    w = rows * (depth // 2 if four_bit else depth)
    scales = max(1, depth // group_size) * rows * (4 if scheme == "int4" else 2) if four_bit else 0
    return ceil_div(tokens * depth * 2 + w + scales, 1024) * 1024 + 16


FEW = {  # by rows of the weight and of x, and how many blocks share k
    f"{64 * consumers}x{tokens}/{splits}": Few(consumers, tokens, splits, blocks)
    for consumers, tokens, blocks in ((4, 16, 1), (3, 16, 1), (2, 16, 2), (4, 32, 1), (3, 32, 1), (2, 32, 2), (2, 64, 1), (3, 64, 1), (4, 64, 1))
    for splits in (1, 2, 3, 4, 6, 8)
}
MANY = {  # by rows of the weight and of x, and how many blocks share k
    "128x64": Config(2, 64, 128, 0.48),
    "192x64": Config(3, 64, 128, 0.71, slabs=6),
    "128x128": Config(2, 128, 64, 0.77),
    "192x128": Config(3, 128, 64, 1.07, slabs=6),
    "128x192": Config(2, 192, 64, 0.97),
    "128x256": Config(2, 256, 64, 1.25),
    "128x128 by 2": Config(2, 128, 64, 0.77, splits=2),
    "192x128 by 2": Config(3, 128, 64, 1.07, slabs=6, splits=2),
    "128x256 by 2": Config(2, 256, 64, 1.25, splits=2),
}
CONFIGS = FEW | MANY


def v5_hopper(x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    (m, k), n = x.shape, weight.shape[0]
    return configured(best_config(m, n, k, processors(x) if x.is_cuda else 132, weight.scheme in FOUR_BIT), x, weight, bias)


@functools.lru_cache(4096)
def best_config(m: int, n: int, k: int, at_once: int, four_bit: bool = True) -> str:
    """The name of the configuration that should take the least time on so many multiprocessors, by a model fitted to an H200."""
    tokens = min([few.tokens for few in FEW.values() if few.tokens >= m], default=0)  # no more columns than there are rows of x
    allowed = MANY if m > 64 else (name for name, config in CONFIGS.items() if config.tokens == tokens)
    return min(allowed, key=lambda name: microseconds(CONFIGS[name], m, n, k, at_once, four_bit))


def microseconds(config: Config | Few, m: int, n: int, k: int, at_once: int, four_bit: bool = True) -> float:
    """What a configuration should take: steps of 128 of k, as long as multiplying, unpacking or copying takes, and what stands around them."""
    tiles, steps = ceil_div(n, config.rows) * ceil_div(m, config.tokens), ceil_div(k, STEP)
    if isinstance(config, Few):
        waves = ceil_div(tiles * config.splits, at_once * config.blocks)
        together = min(config.blocks, ceil_div(tiles * config.splits, at_once))
        met = 0.6 if config.splits <= 2 else 1 + 5.4e-5 * config.splits * config.rows * config.tokens  # the last block reads what all have left
        return waves * (4 + ceil_div(steps, config.splits) * _few_step(config, m, four_bit) * together) + met
    if config.splits > 1:
        return 5 + ceil_div(tiles, at_once // config.splits) * (1.5 + ceil_div(steps, config.splits) * config.step_us)
    return 4.5 + min(_dealt_whole(config, tiles, steps, at_once), _dealt_in_parts(config, tiles, steps, at_once))


def _few_step(config: Few, m: int, four_bit: bool) -> float:
    """Microseconds of a step of a block that has a multiprocessor for itself."""
    copied = min(m, config.tokens) * 256 + config.rows * (68 if four_bit else 128)
    return max(config.consumers * (0.16 + 0.0015 * config.tokens), copied / 54000)


def _dealt_whole(config: Config, tiles: int, steps: int, blocks: int) -> float:
    return ceil_div(tiles, blocks) * (1 + steps * config.step_us)


@functools.lru_cache(4096)
def _dealt_in_parts(config: Config, tiles: int, steps: int, blocks: int) -> float:
    """As many whole waves as there are, and the rest cut along k: its parts pass through memory."""
    rest = tiles % blocks
    if rest == 0:
        return _dealt_whole(config, tiles, steps, blocks)
    parts = best_parts(rest, steps, blocks)
    longest = tiles // blocks * steps + ceil_div(rest * steps, parts)
    out_of_step = 1.03  # blocks that are not at the same k find less of x in L2
    met = (3 + 1.25 * (most_of_a_tile(rest, steps, parts) - 1)) * config.rows * config.tokens / 32768
    return 1 + out_of_step * longest * config.step_us + met


@functools.lru_cache(4096)
def best_parts(tiles: int, steps: int, blocks: int) -> int:
    """In how many parts, one a block, to cut so many tiles. As many as there are blocks would be shortest; but where parts and tiles are in
    the ratio of small numbers, fewer tiles have a third part, and each part that is added costs a tile's way through L2, some 2.5 steps."""
    most = min(blocks, tiles * steps)

    def cost(parts: int) -> float:
        return ceil_div(tiles * steps, parts) + 2.5 * most_of_a_tile(tiles, steps, parts)

    return min(range(most, max(1, most * 3 // 4) - 1, -1), key=cost)


def most_of_a_tile(tiles: int, steps: int, parts: int) -> int:
    """Into how many parts a tile falls at most, as Schedule (stream_k.cuh) cuts them."""
    units = tiles * steps
    return max((first + steps - 1) * parts // units - first * parts // units + 1 for first in range(0, units, steps))


def configured(
    config: str | Config | Few, x, weight: QuantizedWeight, bias=None, blocks: int | None = None, parts: int | None = None
) -> torch.Tensor:
    """v5 as CONFIGS[config], or as this one. That for many rows cuts the tiles left over into parts where this pays; always, if it is said
    for how many `blocks`, or into how many `parts`."""
    config = CONFIGS[config] if isinstance(config, str) else config
    (m, k), n = x.shape, weight.shape[0]
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    few, four_bit = isinstance(config, Few), weight.scheme in FOUR_BIT
    depth = STEP if few else config.depth
    x = for_copies(x)
    scales = weight.scales.view(torch.int32).view(-1, n) if weight.scheme == "int4" else weight.scales
    map_x = tensor_map(x, (config.tokens, 64), 128)
    map_w = tensor_map(weight.packed, (config.rows, depth // 8 if four_bit else depth), depth // 2 if four_bit else depth)
    map_scales = tensor_map(scales, (max(1, depth // weight.group_size), config.rows)) if four_bit else map_w
    row_scales = None if four_bit else scales
    shared = config.memory(weight.scheme, weight.group_size)[1]
    launched = _kernel(config, x.dtype, weight.scheme, weight.group_size)
    tiles, threads = ceil_div(n, config.rows) * ceil_div(m, config.tokens), 128 * (config.consumers + 1)
    if few:
        workspace = counters = None
        if config.splits > 2:
            workspace = torch.empty(tiles * config.splits * config.rows * config.tokens, dtype=torch.float32, device=x.device)
            counters = lasting.counters(tiles, x.device)
        args = (map_x, map_w, map_scales, y, row_scales, weight.codebook, m, n, k, workspace, counters)
        launch(launched, weight, (config.splits, tiles), threads, args, shared, (2, 1) if config.splits == 2 else None)
    else:
        map_y = tensor_map(y, (32, 64), 128)
        steps, at_once = ceil_div(k, STEP), min(blocks or processors(x), tiles * ceil_div(k, STEP))
        in_parts = bool(blocks or parts) or _dealt_in_parts(config, tiles, steps, at_once) < _dealt_whole(config, tiles, steps, at_once)
        workspace = counters = None
        if config.splits > 1:
            blocks, whole, parts = tiles * config.splits, tiles, 1
            workspace = torch.empty(blocks * config.rows * config.tokens, dtype=torch.float32, device=x.device)
        elif in_parts:
            blocks, whole = at_once, tiles // at_once * at_once
            parts = parts or (best_parts(tiles - whole, steps, blocks) if whole < tiles else 1)
        else:
            blocks, whole, parts = min(at_once, tiles), tiles, 1
        if whole < tiles:
            workspace = torch.empty(2 * blocks * config.rows * config.tokens, dtype=torch.float32, device=x.device)
            counters = lasting.counters(blocks, x.device)
        args = (map_x, map_w, map_scales, map_y, row_scales, weight.codebook, m, n, k, whole, parts, config.band, workspace, counters)
        launch(launched, weight, (blocks, 1), threads, args, shared, (config.splits, 1) if config.splits > 1 else None)
    return y if bias is None else y.add_(bias)


@functools.lru_cache(None)
def _kernel(config: Config | Few, dtype: torch.dtype, scheme: str, group_size: int | None) -> Kernel:
    stages, copies = config.memory(scheme, group_size)[0], config.copies(scheme)
    types = f"{c_type(dtype)}, Scheme::{SCHEMES[scheme]}, {group_size or 0}"
    if isinstance(config, Few):
        sizes = (config.consumers, config.tokens, stages, config.splits, copies, config.blocks)
        return Kernel(FEW_ROWS_FILE, f"quant_matmul_few_rows<{types}, {', '.join(map(str, sizes))}>")
    sizes = (config.consumers, config.tokens, config.depth, stages, config.slabs, copies, config.splits)
    return Kernel(FILE, f"quant_matmul_hopper<{types}, {', '.join(map(str, sizes))}>")


def for_copies(x: torch.Tensor) -> torch.Tensor:
    """The same rows where the copy engine can read them: each dense, and on a multiple of 16 bytes."""
    m, k = x.shape
    if (k == 1 or x.stride(1) == 1) and (m == 1 or x.stride(0) % 8 == 0) and x.data_ptr() % 16 == 0:
        return x
    return F.pad(x, (0, -k % 8)).contiguous()[:, :k] if k % 8 else x.clone(memory_format=torch.contiguous_format)


def _accepts(x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> str | None:
    if x.dtype not in (torch.bfloat16, torch.float16):
        return "takes x in bfloat16 and float16"
    if weight.shape[1] == 0 or weight.shape[0] % 8:
        return "takes k from 1 and n in multiples of 8"
    return hopper_refusal(x)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v5_hopper", v5_hopper, "wgmma with W unpacked into its registers, x by TMA; parts of tiles fill the GPU", FILE, _accepts),
    )
}
