"""How each version of `gemv` is launched, and on what it can run.

Each takes (x, w, norm_weight, residual, activation, eps, out_dtype, out) and returns y.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from labkernels.cuda.variants import c_type, ceil_div, kernel, processors, vector_width
from labkernels.operation import Variant
from labkernels.quant.formats import FOUR_BIT, QuantizedWeight

FOLDER = Path(__file__).parent
WARPS = 8  # of a block of v1 and v2
TABLE_BYTES = 32 * 1024  # of Codes in quant/gemv_formats.cuh
MOST_ROWS = 64  # of x, in v3
MOST_DIGIT_ROWS = 16  # of x that are rounded to digits
LEAST_AHEAD = 4  # steps of v3
MOST_SHARED = 224 * 1024  # bytes that a block of v3 may ask for
SUMS = 17  # as in stream.cuh


class Stored(NamedTuple):
    """How a weight (n, k) lies in memory: what a step of 64 bytes a row holds, and what comes with it."""

    n: int
    k: int
    bits: int = 16  # of a number
    factors: bool = False  # has each group of 128 numbers a scale of its own?
    table: bool = False  # are its numbers looked up?
    whole: bool = False  # are they integers?

    @classmethod
    def of(cls, weight: torch.Tensor | QuantizedWeight) -> Stored:
        if isinstance(weight, torch.Tensor):
            return cls(*weight.shape)
        four_bit = weight.scheme in FOUR_BIT
        return cls(*weight.shape, 4 if four_bit else 8, four_bit, weight.scheme in ("nf4", "codebook"), weight.scheme in ("int4", "int8"))

    @property
    def steps(self) -> int:
        return self.k * self.bits // 512

    def digits(self, m: int) -> bool:
        """Are m rows of x rounded to whole numbers (digits.cuh)?"""
        return self.whole and m <= MOST_DIGIT_ROWS

    def column_tiles(self, m: int) -> int:
        """Tiles of 8 columns for which a kernel is made: 1, 2, 4 or 8, or 0 for one row of x alone. A row of x is a column, or two of digits."""
        return 0 if m == 1 else _power_of_two(max(1, ceil_div(m, 4 if self.digits(m) else 8)))

    @property
    def refusal(self) -> str | None:
        return f"takes a k of a multiple of {512 // self.bits}" if self.k % (512 // self.bits) else None


@dataclass(frozen=True)
class Stream:
    """v3's template arguments and its grid: `share` of a block's warps, all unless given, and `splits` blocks of a cluster share a tile's k; each warp has
    `ahead` steps of 1 KB on their way; registers allow `blocks` on an SM, of which `resident` are launched: where there is room left, the next kernel's
    blocks begin early."""

    warps: int
    ahead: int
    blocks: int = 2
    resident: int = 1
    splits: int = 1
    share: int = 0

    def __post_init__(self):
        object.__setattr__(self, "share", self.share or self.warps)

    @property
    def groups(self) -> int:
        """Tiles that a block works on at a time."""
        return self.warps // self.share

    @property
    def template(self) -> tuple[int, ...]:
        return self.warps, self.share, self.ahead, self.blocks

    def shared_mem(self, m: int, stored: Stored, norm: bool) -> int:
        ring = self.warps * self.ahead * (1024 + 64 * stored.factors)
        steps = self.share * ceil_div(stored.steps, self.share * self.splits)
        staged = steps * ((1024 // stored.bits) * (m + norm) + 8 * m * stored.digits(m))
        return TABLE_BYTES * stored.table + ring + staged + 4 * SUMS * 2 * m * (self.warps + (self.splits if self.splits > 1 else 0))

    @functools.cached_property
    def cluster(self) -> tuple[int, int, int] | None:
        return (1, self.splits, 1) if self.splits > 1 else None


def v1_naive(x, w, norm_weight=None, residual=None, activation=None, eps=1e-5, out_dtype=None, out=None) -> torch.Tensor:
    return _one_row_each("gemv_naive", "v1_naive.cu", (), x, w, norm_weight, residual, activation, eps, out_dtype, out)


def v2_vectors(x, w, norm_weight=None, residual=None, activation=None, eps=1e-5, out_dtype=None, out=None) -> torch.Tensor:
    tail = (16 // x.element_size(), 4)
    return _one_row_each("gemv_vectors", "v2_vectors.cu", tail, x, w, norm_weight, residual, activation, eps, out_dtype, out)


def v3_stream(x, w, norm_weight=None, residual=None, activation=None, eps=1e-5, out_dtype=None, out=None) -> torch.Tensor:
    config = stream_for(x.device, len(x), Stored.of(w), norm_weight is not None)
    return streamed(config, x, w, norm_weight, residual, activation, eps, out_dtype, out)


def streamed(config, x, w, norm_weight=None, residual=None, activation=None, eps=1e-5, out_dtype=None, out=None, early=False) -> torch.Tensor:
    """v3 with this configuration; w a tensor or a QuantizedWeight. `early`: without waiting for the kernel before; w and norm_weight must not be
    written by it."""
    m, gated, norm, stored = len(x), activation is not None, norm_weight is not None, Stored.of(w)
    y = _result(x, w, gated, out_dtype, out)
    if not y.numel():
        return y
    tiles = ceil_div(stored.n, 16)
    options = (_cpp(norm), _cpp(gated), stored.column_tiles(m), *config.template)
    packed = sizes(config, m, stored, tiles, eps, x.stride(0))
    if isinstance(w, torch.Tensor):
        run = kernel(FOLDER / "v3_stream.cu", "gemv_stream", x.dtype, y.dtype, *options)
        args = (x, w, norm_weight, residual, y, packed)
    else:
        run = kernel(FOLDER / "quantised.cu", "gemv_quantised", format_of(w, x.dtype, m), y.dtype, *options)
        args = (x, w.packed, w.scales, w.codebook, norm_weight, residual, y, packed, TABLE_BYTES * stored.table)
    launch_stream(run, config, x.device, tiles, args, config.shared_mem(m, stored, norm), early)
    return y


def format_of(weight: torch.Tensor | QuantizedWeight, dtype: torch.dtype, m: int) -> str:
    """The kernels' Format for m rows of x."""
    if isinstance(weight, torch.Tensor):
        return f"Whole<{c_type(dtype)}>"
    if Stored.of(weight).digits(m):
        return f"{'Nibbles' if weight.scheme == 'int4' else 'Bytes'}<{c_type(dtype)}>"
    names = {"int4": "Int4<{}>", "int8": "Int8<{}>", "fp8": "Fp8<{}>", "nf4": "Codes<{}, false>", "codebook": "Codes<{}, false>"}
    return names[weight.scheme].format(c_type(dtype))


def quantised_refusal(weight: QuantizedWeight, dtype: torch.dtype) -> str | None:
    """Why the stream cannot take this weight, or None."""
    if dtype == torch.float32:
        return "takes bfloat16 and float16, for tensor cores"
    if weight.group_size not in (None, 128):
        return "takes groups of 128 numbers"
    if weight.scheme in ("nf4", "codebook") and weight.shape[0] % 2:
        return "takes an even number of rows, as the scales of two are one word"
    return Stored.of(weight).refusal


def sizes(config: Stream, m: int, stored: Stored, tiles: int, eps: float, x_stride: int) -> bytes:
    """stream.cuh's `Sizes`."""
    parts = divmod(stored.steps, config.share * config.splits)
    return struct.pack("<6ifiq", m, stored.n, stored.k, tiles, *parts, eps, x_stride, 64 * stored.steps)


def launch_stream(run, config: Stream, device: torch.device, tiles: int, args: tuple, shared: int, early: bool) -> None:
    """A persistent grid."""
    grid = (blocks_of(config, device, tiles), config.splits)
    run(grid, 32 * config.warps, args, shared, config.cluster, early)


def blocks_of(config: Stream, device: torch.device, tiles: int) -> int:
    """As many clusters as run at a time, or as there are tiles."""
    return min(ceil_div(tiles, config.groups), max(1, processor_count(device) * config.resident // config.splits))


@functools.lru_cache(maxsize=4096)
def stream_for(device: torch.device, m: int, stored: Stored, norm: bool) -> Stream:
    """How to cut the work. Who adds up what does not depend on m among up to 4 rows of x, nor up to 8 where k is no more than 8192: then neither do
    the bits of a row's result."""
    rows = 4 if m <= 4 else 8 * _power_of_two(ceil_div(m, 8))
    config = Stream(2, 4) if device.type == "cpu" else _tuned(stored.n, stored.k, stored.bits)
    while config.splits < 8 and replace(config, ahead=LEAST_AHEAD).shared_mem(rows, stored, norm) > MOST_SHARED:
        config = replace(config, splits=2 * config.splits, share=config.warps)  # a cluster's barriers cost 2 us: only where x does not fit
    rounds = ceil_div(ceil_div(stored.n, 16), config.groups * blocks_of(config, device, ceil_div(stored.n, 16)))
    needed = rounds * ceil_div(stored.steps, config.share * config.splits)  # steps of a warp in all: room that is left is the next kernel's
    config = replace(config, ahead=min(config.ahead, max(2, needed)), blocks=config.blocks if m == 1 else 16 // config.warps)
    while config.shared_mem(m, stored, norm) > MOST_SHARED // config.resident and config.ahead > LEAST_AHEAD:
        config = replace(config, ahead=config.ahead - 2) if config.ahead > 6 or config.resident == 1 else replace(config, resident=1, ahead=12)
    return config


def _tuned(n: int, k: int, bits: int) -> Stream:
    """What was fastest in a decode step of Llama-3.2-1B on an H200, of those that spill no registers."""
    if n > 65_536:
        return Stream(8, 16, blocks=1) if bits == 16 else Stream(8, 10, resident=2)
    if bits == 4:
        return Stream(8, 8, resident=2, share=2) if n >= 8192 else Stream(16, 8, blocks=1) if k >= 8192 else Stream(8, 8, resident=2)
    if n >= 8192:
        return Stream(8, 12, resident=2, share=4)
    if k >= 4096:
        return Stream(16, 10 if bits == 16 else 8, blocks=1)
    return Stream(8, 6, blocks=3, resident=2) if n > 2048 else Stream(16, 4, blocks=1)


@functools.cache
def processor_count(device: torch.device) -> int:
    return processors(torch.empty(0, device=device))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _one_row_each(name, file, tail, x, w, norm_weight, residual, activation, eps, out_dtype, out) -> torch.Tensor:
    gated = activation is not None
    y = _result(x, w, gated, out_dtype, out)
    if y.numel():
        packed = struct.pack("<3if q".replace(" ", ""), x.shape[1], y.shape[1], gated, eps, x.stride(0))
        grid = (ceil_div(y.shape[1], WARPS), len(x))
        kernel(FOLDER / file, name, x.dtype, y.dtype, *tail)(grid, 32 * WARPS, (x, w, norm_weight, residual, y, packed))
    return y


def _result(x, w, gated: bool, out_dtype, out) -> torch.Tensor:
    if out is not None:
        return out
    return torch.empty((len(x), w.shape[0] // (2 if gated else 1)), dtype=out_dtype or x.dtype, device=x.device)


def _cpp(flag: bool) -> str:
    return "true" if flag else "false"


def _accepts_vectors(x, w, norm_weight=None, residual=None, **_) -> str | None:
    width = 16 // x.element_size()
    tensors = [tensor for tensor in (x, w, norm_weight) if tensor is not None]
    return None if vector_width(width, *tensors) == width else f"takes a k of a multiple of {width}, and rows that lie on 16 bytes"


def _accepts_stream(x, w, norm_weight=None, residual=None, **_) -> str | None:
    if x.dtype == torch.float32:
        return "takes bfloat16 and float16, for tensor cores"
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or more"
    m, stored, norm = len(x), Stored.of(w), norm_weight is not None
    if m > MOST_ROWS:
        return f"takes at most {MOST_ROWS} rows of x"
    if stored.refusal:
        return stored.refusal
    config = stream_for(x.device, m, stored, norm)
    if config.shared_mem(m, stored, norm) > MOST_SHARED:
        return f"takes rows of x that fit into shared memory; {m} of {stored.k} do not"
    if config.splits > 1 and x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0):
        return "shares out k over the blocks of a cluster here, which needs compute capability 9.0"
    return _accepts_vectors(x, w, norm_weight)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "a warp a row of the weight, one number a lane", FOLDER / "v1_naive.cu"),
        Variant("v2_vectors", v2_vectors, "16 bytes a lane, several on their way", FOLDER / "v2_vectors.cu", _accepts_vectors),
        Variant(
            "v3_stream", v3_stream, "a stream that never stops: k shared out, tensor cores for up to 64 rows, early launches",
            FOLDER / "v3_stream.cu", _accepts_stream,
        ),
    )
}  # fmt: skip
