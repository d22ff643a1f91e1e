"""How each version of `scaled_matmul` is launched, and on what it can run.

Each takes what `labkernels.scaled_matmul.scaled_matmul` does and returns a new contiguous (m, n) of out_dtype. v2_hopper is v7 of `matmul`
with other types. The ladder ends with the one whose sums are float32's. v2_hopper and v3_tall_fast, which leave them in the tensor cores, take a
tenth less time for large products, and are never picked: run them by name.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from labkernels.cuda.kernel import MAX_GRID, Kernel
from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import c_type, ceil_div, hopper_refusal, kernel, processors
from labkernels.matmul import hopper
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
BLOCK = (32, 8)  # threads of v1


@dataclass(frozen=True)
class Promoted:
    """A block's tile of the result, 128 x `columns`; `stages` of 128 of k in flight; `slabs` of the result on their way out; `sets` of
    accumulators, added up after `promote` stages; `cluster` blocks, one above the other, that share their columns of b."""

    columns: int = 128
    stages: int = 6
    slabs: int = 4
    sets: int = 2
    promote: int = 1
    cluster: int = 1
    band: int = 16

    @property
    def shared_mem(self) -> int:
        return self.stages * (128 + self.columns) * 128 + self.slabs * 8192 + 16 * self.stages


PROMOTED = {  # configurations of v2_promoted, by columns
    "128": Promoted(),
    "64": Promoted(columns=64, stages=8),
    "128_one_set": Promoted(sets=1),
    "128_every_2": Promoted(sets=1, promote=2),
    "128_every_4": Promoted(sets=1, promote=4),
    "128_cluster": Promoted(cluster=2),
    "192": Promoted(columns=192, stages=4, sets=1),
    "192_every_2": Promoted(columns=192, stages=4, sets=1, promote=2),
    "192_cluster": Promoted(columns=192, stages=4, sets=1, cluster=2),
}
@dataclass(frozen=True)
class Tall:
    """A block's tile of the result, `rows` x `columns`; `stages` of 128 of k in flight; `slabs` of the result on their way out; `promote`: sums in
    float32; `cluster` blocks, one above the other, that share their columns of b."""

    columns: int = 128
    stages: int = 4
    slabs: int = 2
    promote: bool = True
    cluster: int = 1
    band: int = 8
    rows: int = 256

    @property
    def shared_mem(self) -> int:
        return self.stages * (self.rows + self.columns) * 128 + self.slabs * 8192 + 16 * self.stages


TALL = {  # configurations of v3_tall
    "128": Tall(),
    "128_cluster": Tall(cluster=2),
    "128_fast": Tall(promote=False),
    "128_low": Tall(stages=6, slabs=4, rows=128),
    "128_low_fast": Tall(stages=6, slabs=4, rows=128, promote=False),
}
LOW_COST = 0.54  # of a round of tiles of 128 rows, beside one of 256, as timed on an H200 with k = 4096 when this was tuned
HOPPER = {  # of v2_hopper, by rows and columns
    "128x256": hopper.Config(128, 256, 2, 4, 4),
    "256x128": hopper.Config(256, 128, 2, 4, 4),
    "128x128": hopper.Config(128, 128, 2, 6, 4),
    "128x256_cluster": hopper.Config(128, 256, 2, 4, 4, 2),
    "256x128_cluster": hopper.Config(256, 128, 2, 4, 4, 2),
}


def v1_naive(a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> torch.Tensor:
    (m, k), n = a.shape, b.shape[1]
    c = torch.empty((m, n), dtype=out_dtype, device=a.device)
    if c.numel():
        grid = ceil_div(n, BLOCK[0]), ceil_div(m, BLOCK[1])
        scales = scale_a.reshape(-1).contiguous(), scale_b.reshape(-1).contiguous()  # the kernel's steps are ints
        steps = (scale.stride(0) if scale.numel() > 1 else 0 for scale in scales)
        args = (a, b, c, m, n, k, a.stride(0), b.stride(1), *scales, *steps, bias)
        kernel(FOLDER / "v1_naive.cu", "scaled_matmul_naive", out_dtype)(grid, BLOCK, args)
    return c


def v2_promoted(a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> torch.Tensor:
    narrow = _rounds(a, b, 128, 64) * 0.6 < _rounds(a, b, 128, 128)
    return promoted("64" if narrow else "128", a, b, scale_a, scale_b, bias, out_dtype)


def v3_tall(a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> torch.Tensor:
    return tall("128_low" if _low(a, b) else "128", a, b, scale_a, scale_b, bias, out_dtype)


def v3_tall_fast(a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> torch.Tensor:
    return tall("128_low_fast" if _low(a, b) else "128_fast", a, b, scale_a, scale_b, bias, out_dtype)


def _low(a, b) -> bool:
    """Are tiles of 128 rows done earlier than those of 256?"""
    return LOW_COST * _rounds(a, b, 128, 128) < _rounds(a, b, 256, 128)


def _rounds(a, b, rows: int, columns: int) -> int:
    """How many tiles of the result, one after the other, the busiest multiprocessor has to do."""
    return ceil_div(ceil_div(a.shape[0], rows) * ceil_div(b.shape[1], columns), processors(a))


def v2_hopper(a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> torch.Tensor:
    return configured("128x256" if a.shape[0] > 64 else "128x128", a, b, scale_a, scale_b, bias, out_dtype)


def promoted(config: str | Promoted, a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> torch.Tensor:
    """v2_promoted as PROMOTED[config], or as this one."""
    config = PROMOTED[config] if isinstance(config, str) else config
    (m, k), n = a.shape, b.shape[1]
    out = torch.empty((m, n), dtype=out_dtype, device=a.device)
    if not out.numel():
        return out
    maps = tensor_map(a, (128, 128), 128), tensor_map(b.t(), (config.columns // config.cluster, 128), 128), tensor_map(out, (64, 64), 128)
    tiles = ceil_div(m, 128 * config.cluster) * ceil_div(n, config.columns)
    blocks = min(processors(a) // config.cluster, tiles) * config.cluster
    args = (*maps, m, n, k, each(scale_a, m), each(scale_b, n), bias, config.band)
    _promoted(config, out_dtype)(blocks, 384, args, config.shared_mem, config.cluster if config.cluster > 1 else None)
    return out


@functools.lru_cache(None)
def _promoted(config: Promoted, out_dtype: torch.dtype) -> Kernel:
    sizes = (config.columns, config.stages, config.slabs, config.sets, config.promote, config.cluster)
    return Kernel(FOLDER / "v2_promoted.cu", f"scaled_matmul_promoted<{c_type(out_dtype)}, {', '.join(map(str, sizes))}>")


def tall(config: str | Tall, a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> torch.Tensor:
    """v3_tall as TALL[config], or as this one."""
    config = TALL[config] if isinstance(config, str) else config
    (m, k), n = a.shape, b.shape[1]
    out = torch.empty((m, n), dtype=out_dtype, device=a.device)
    if not out.numel():
        return out
    maps = tensor_map(a, (config.rows, 128), 128), tensor_map(b.t(), (config.columns // config.cluster, 128), 128), tensor_map(out, (64, 64), 128)
    tiles = ceil_div(m, config.rows * config.cluster) * ceil_div(n, config.columns)
    blocks = min(processors(a) // config.cluster, tiles) * config.cluster
    args = (*maps, m, n, k, each(scale_a, m), each(scale_b, n), bias, config.band)
    _tall(config, out_dtype)(blocks, 384, args, config.shared_mem, config.cluster if config.cluster > 1 else None)
    return out


@functools.lru_cache(None)
def _tall(config: Tall, out_dtype: torch.dtype) -> Kernel:
    sizes = (config.rows // 128, config.columns, config.stages, config.slabs, str(config.promote).lower(), config.cluster)
    return Kernel(FOLDER / "v3_tall.cu", f"scaled_matmul_tall<{c_type(out_dtype)}, {', '.join(map(str, sizes))}>")


def configured(config: str | hopper.Config, a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> torch.Tensor:
    """v2_hopper as HOPPER[config], or as this one."""
    config = HOPPER[config] if isinstance(config, str) else config
    (m, _), n = a.shape, b.shape[1]
    if not m * n:
        return torch.empty((m, n), dtype=out_dtype, device=a.device)
    return hopper.configured(config, a, b, bias, scale_a=each(scale_a, m), scale_b=each(scale_b, n), out_dtype=out_dtype)


def each(scale: torch.Tensor, count: int) -> torch.Tensor:
    """`count` scales, one after the other: they themselves, or one repeated."""
    return scale.reshape(-1).expand(count).contiguous()


def _at_most_rows(a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> str | None:
    most = BLOCK[1] * MAX_GRID[1]
    return f"takes at most {most} rows" if a.shape[0] > most else None


def _on_hopper(a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> str | None:
    if a.shape[1] == 0:
        return "takes k from 1"
    for name, tensor, stride in (("rows of a", a, a.stride(0)), ("columns of b", b, b.stride(1))):
        if tensor.data_ptr() % 16 or stride % 16:
            return f"takes {name} that begin on multiples of 16 bytes"
    if b.shape[1] % 8:
        return "takes n that is a multiple of 8"
    if bias is not None and bias.data_ptr() % 4:
        return "takes a bias that begins on a multiple of 4 bytes"
    return hopper_refusal(a)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "one thread an element, which widens what it multiplies", FOLDER / "v1_naive.cu", _at_most_rows),
        Variant(
            "v2_hopper",
            v2_hopper,
            "the sums stay in the tensor cores, 14 bits of them, and so larger tiles fit",
            hopper.FILE,
            _on_hopper,
        ),
        Variant(
            "v2_promoted",
            v2_promoted,
            "Hopper's tensor cores; their short sums are added up in float32, 128 of k at a time",
            FOLDER / "v2_promoted.cu",
            _on_hopper,
        ),
        Variant(
            "v3_tall_fast",
            v3_tall_fast,
            "a warpgroup has 128 rows; the sums stay in the tensor cores",
            FOLDER / "v3_tall.cu",
            _on_hopper,
        ),
        Variant(
            "v3_tall",
            v3_tall,
            "a warpgroup has 128 rows, which it multiplies and adds up 64 at a time; scales wait in shared memory",
            FOLDER / "v3_tall.cu",
            _on_hopper,
        ),
    )
}
