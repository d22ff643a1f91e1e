"""How v8 of `matmul` is launched: float32 matrices are split into halves, which the tensor cores of a Hopper GPU multiply.

a (m, k) and b (k, n) have dense rows or dense columns, any sizes and distances. The result is activation(a @ b + bias) + residual, (m, n),
contiguous, as exact as float32 arithmetic gives it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from labkernels.cuda.kernel import Kernel
from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import ceil_div, hopper_refusal, kernel, processors, vector_width
from labkernels.matmul.launch import activation_number
from labkernels.operation import Variant, dtype_name

FILE = Path(__file__).with_name("v8_split.cu")
SPLIT_FILE = Path(__file__).with_name("split_halves.cu")
ROWS, STRIP = 128, 16  # of a tile of v8_split.cu, and of what a block of split_columns has


@dataclass(frozen=True)
class Config:
    """A block's tile of C, 128 x `columns`; `stages` of 64 of k in flight; `slabs` of C on their way out; `sets` of accumulators, added up
    after `promote` stages; `cluster` blocks, one above the other, that share their columns of B; bands of `band` rows of tiles."""

    columns: int = 128
    stages: int = 3
    slabs: int = 4
    sets: int = 2
    promote: int = 1
    cluster: int = 1
    band: int = 16

    @property
    def shared_mem(self) -> int:
        return self.stages * (ROWS + self.columns) * 256 + self.slabs * 8192 + 16 * self.stages


FEWEST_ROWS, FEWEST_K, FEWEST_PRODUCTS = 128, 128, 200_000_000  # measured on an H200, beside v5: 512^3 18.3 us and 13.8, 640^3 20.5 and 23.7
CONFIGS = {  # by columns
    "128": Config(),
    "128_one_set": Config(sets=1),
    "128_every_2": Config(sets=1, promote=2),
    "128_cluster": Config(cluster=2),
    "128_cluster_every_2": Config(sets=1, promote=2, cluster=2),
    "192": Config(columns=192, stages=2, sets=1),
    "192_every_2": Config(columns=192, stages=2, sets=1, promote=2),
    "64": Config(columns=64, stages=4),
}


def v8_split(a, b, bias=None, activation=None, residual=None) -> torch.Tensor:
    return configured(best_config(a.shape[0], b.shape[1], processors(a)), a, b, bias, activation, residual)


def best_config(m: int, n: int, at_once: int) -> str:
    """The name of the configuration for these sizes: narrow tiles where wide ones would be fewer than the blocks that run at once."""
    return "128" if ceil_div(m, ROWS) * ceil_div(n, 128) >= at_once else "64"


def configured(config: str | Config, a, b, bias=None, activation=None, residual=None) -> torch.Tensor:
    """v8 as CONFIGS[config], or as this Config."""
    config = CONFIGS[config] if isinstance(config, str) else config
    (m, k), n = a.shape, b.shape[1]
    if not m * n:
        return torch.empty((m, n), dtype=a.dtype, device=a.device)
    return multiply(config, split(a), split(b.t()), bias, activation, residual)


def split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (rows, k) as halves (2 * rows, k rounded up to a multiple of 8), the higher ones first, and the scales of its rows (rows,)."""
    rows, k = x.shape
    padded = max(8, ceil_div(k, 8) * 8)
    halves = torch.empty((2 * rows, padded), dtype=torch.float16, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    if x.stride(1) == 1 or k <= 1:
        width = 4 if x.stride(0) % 4 == 0 and x.data_ptr() % 16 == 0 else 1
        threads = 32 if padded <= 1024 else 256
        units = next((u for u in (1, 2, 4, 8) if 8 * u * threads >= padded), 0)
        split_rows = kernel(SPLIT_FILE, "split_rows", width, threads, units)
        split_rows(ceil_div(rows, 256 // threads), 256, (x, halves, scales, rows, k, padded, x.stride(0)))
    else:
        width = 4 if x.stride(1) % 4 == 0 and x.data_ptr() % 16 == 0 else 1
        kernel(SPLIT_FILE, "split_columns", width)(ceil_div(rows, STRIP), 1024, (x, halves, scales, rows, k, padded, x.stride(1)))
    return halves, scales


def gated(a, b, bias=None, activation="silu") -> torch.Tensor:
    """activation(a @ b_gate + bias_gate) * (a @ b_up + bias_up), (m, n), where b (k, 2 n) and bias (2 n,) have all gates before all ups."""
    (m, k), columns = a.shape, b.shape[1]
    if not m * columns:
        return torch.empty((m, columns // 2), dtype=a.dtype, device=a.device)
    config = CONFIGS[best_config(m, columns, processors(a))]
    return multiply(config, split(a), split(b.t()), bias, activation, gated=True)


@functools.lru_cache(None)
def _kernel(config: Config, aligned: bool, activation: int, gated: bool = False) -> Kernel:
    sizes = (config.columns, config.stages, config.slabs, config.sets, config.promote, config.cluster, str(aligned).lower(), activation)
    return Kernel(FILE, f"matmul_split<{', '.join(map(str, [*sizes, *['true'] * gated]))}>")


def multiply(config: Config, a, b, bias=None, activation=None, residual=None, gated=False) -> torch.Tensor:
    """activation(a @ b.t() + bias) + residual of what `split` gave for a (m, k) and b (n, k). `gated` as above, with b (2 n, k)."""
    (halves_a, scale_a), (halves_b, scale_b) = a, b
    halves = 2 if gated else 1
    m, n, k = scale_a.shape[0], scale_b.shape[0] // halves, halves_a.shape[1]
    out = torch.empty((m, n), dtype=torch.float32, device=scale_a.device)
    map_a = tensor_map(halves_a, (ROWS, 64), 128)
    map_b = tensor_map(halves_b, (config.columns // config.cluster // halves, 64), 128)
    added = [t for t in (bias, residual) if t is not None]
    aligned = n % 4 == 0 and vector_width(2, *added) == 2
    map_c = tensor_map(out, (64, 32), 128) if aligned else map_a
    tiles = ceil_div(m, ROWS * config.cluster) * ceil_div(halves * n, config.columns)
    blocks = min(processors(out) // config.cluster, tiles) * config.cluster
    stride = residual.stride(0) if residual is not None else 0
    cluster = config.cluster if config.cluster > 1 else None
    args = (map_a, map_b, map_c, out, m, n, k, scale_a, scale_b, bias, residual, stride, config.band)
    _kernel(config, aligned, activation_number(activation), *[True] * gated)(blocks, 384, args, config.shared_mem, cluster)
    return out


def _accepts(a, b, bias=None, activation=None, residual=None) -> str | None:
    if a.dtype != torch.float32:
        return f"takes float32, not {dtype_name(a.dtype)}"
    (m, k), n = a.shape, b.shape[1]
    if a.is_cuda and (min(m, n) < FEWEST_ROWS or k < FEWEST_K or m * n * k < FEWEST_PRODUCTS):
        return (
            f"takes results of at least {FEWEST_ROWS} x {FEWEST_ROWS}, a k of {FEWEST_K} and {FEWEST_PRODUCTS:,} products m n k: "
            "for fewer it costs more to split a and b than to multiply them"
        )
    return hopper_refusal(a)


V8 = Variant("v8_split", v8_split, "each float32 as two halves: three products on Hopper's tensor cores for one", FILE, _accepts)
