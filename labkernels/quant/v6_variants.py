"""How v6 of `quant_matmul`, the stream by the copy engine, is launched on Hopper, and on what it can run."""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from pathlib import Path

import torch

from labkernels.cuda.kernel import Kernel
from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import c_type, ceil_div, hopper_refusal, processors
from labkernels.operation import Variant
from labkernels.quant.early_launch import launch
from labkernels.quant.formats import FOUR_BIT, QuantizedWeight

FILE = Path(__file__).with_name("v6_stream.cu")
FORMATS = {"int4": "Int4", "nf4": "Codebook", "codebook": "Codebook", "int8": "Int8", "fp8": "Fp8"}
MOST_ROWS = 8  # of x: the columns of one mma
TABLE_BYTES = 32 * 1024  # of a codebook: one word for each byte and bank
SM_SHARED = 228 * 1024  # bytes of an SM's shared memory, of which each block costs one KB besides its own


@dataclass(frozen=True)
class Stream:
    """`warps` of a block share k, and each has `ahead` units of 128 bytes a row on their way."""

    warps: int
    ahead: int


def v6_stream(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    return streamed(stream_for(x, weight), x, weight)


def streamed(config: Stream, x: torch.Tensor, weight: QuantizedWeight, lut: bool = False) -> torch.Tensor:
    """v6 with this configuration; int4 by lookup if `lut` says so."""
    (m, k), n = x.shape, weight.shape[0]
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    x = x if x.stride(1) == 1 or k <= 1 else x.contiguous()
    four_bit, spans, row_bytes = weight.scheme in FOUR_BIT, 128 // (weight.group_size or 128), weight.packed.shape[1] * weight.packed.element_size()
    scales = weight.scales.view(torch.int32).view(-1, n) if weight.scheme == "int4" else weight.scales
    map_w = tensor_map(weight.packed, (16, 32 if four_bit else 128), 128)
    map_scales = tensor_map(scales, (2 * spans, 16)) if four_bit else map_w
    table = lut or weight.scheme in ("nf4", "codebook")
    fixed = staged_bytes(config.warps, m, weight.scheme, weight.group_size, row_bytes)
    shared = config.warps * (config.ahead * slot_bytes(weight.scheme, weight.group_size) + fixed) + TABLE_BYTES * table
    aligned = x.data_ptr() % 16 == 0 and (m == 1 or x.stride(0) % 8 == 0)
    parts = struct.pack("<2i", *divmod(ceil_div(row_bytes, 128), config.warps))
    args = (x, map_w, map_scales, None if four_bit else scales, weight.codebook, y, m, n, k, x.stride(0), parts, int(aligned), fixed)
    made = _kernel(x.dtype, "Int4Codes" if lut else FORMATS[weight.scheme], spans, staged_rows(m), config)
    launch(made, weight, (min(ceil_div(n, 16), processors(x)), 1), 32 * config.warps, args, shared)
    return y


def stream_for(x: torch.Tensor, weight: QuantizedWeight) -> Stream | None:
    """Two units ahead, or three, with room for the next kernel's block beside this one if x leaves it; None if it leaves none."""
    row_bytes = weight.packed.shape[1] * weight.packed.element_size()
    rows = staged_rows(x.shape[0])
    warps = 2 if not x.is_cuda else 8 if weight.group_size and rows * 128 // weight.group_size > 8 else 16  # more sums need more registers
    return _stream_for(warps, rows, weight.scheme, weight.group_size, row_bytes)


@functools.lru_cache(maxsize=4096)
def _stream_for(warps: int, rows: int, scheme: str, group_size: int | None, row_bytes: int) -> Stream | None:
    most = 2 if scheme in FOUR_BIT else 3  # more were no faster on an H200
    fixed = 1024 + sums_bytes(warps, rows) + warps * staged_bytes(warps, rows, scheme, group_size, row_bytes)
    fixed += TABLE_BYTES * (scheme in ("nf4", "codebook")) + 8 * warps * most
    slots = warps * slot_bytes(scheme, group_size)
    for beside in (2, 1):
        ahead = min(most, (SM_SHARED // beside - fixed) // slots)
        if ahead >= 2:
            return Stream(warps, ahead)
    return None


def slot_bytes(scheme: str, group_size: int | None) -> int:
    """Slot::BYTES (v6_stream.cu): a unit of a warp and its scales."""
    scales = 32 * (128 // group_size) * (4 if scheme == "int4" else 2) if group_size else 0
    return 2048 + ceil_div(scales, 128) * 128


def staged_bytes(warps: int, m: int, scheme: str, group_size: int | None, row_bytes: int) -> int:
    """Shared memory for a warp's part of x: 128 of k a step, 64 where a number has 8 bits; and for the sum of each group."""
    sums = 4 * 128 // group_size if group_size else 0
    return ceil_div(2 * ceil_div(ceil_div(row_bytes, 128), warps) * staged_rows(m) * ((256 if scheme in FOUR_BIT else 128) + sums), 16) * 16


def sums_bytes(warps: int, rows: int) -> int:
    """Static shared memory: the warps' sums of some tiles, twice."""
    return 2 * max(1, 4 // rows) * warps * rows * 16 * 4


def staged_rows(m: int) -> int:
    """Rows of x for which a kernel is made: m or the next power of two."""
    return 1 << max(0, m - 1).bit_length()


@functools.lru_cache(None)
def _kernel(dtype: torch.dtype, name: str, spans: int, rows: int, config: Stream) -> Kernel:
    return Kernel(FILE, f"quant_matmul_stream<{name}, {c_type(dtype)}, {spans}, {rows}, {config.warps}, {config.ahead}>")


def few_rows_refusal(x: torch.Tensor, weight: QuantizedWeight, most_rows: int) -> str | None:
    """Why a stream of W past up to `most_rows` rows of x does not take these; None if it does."""
    if x.dtype not in (torch.bfloat16, torch.float16):
        return "takes x in bfloat16 and float16"
    if x.shape[0] > most_rows:
        return f"up to {most_rows} rows of x"
    n, k = weight.shape
    if k == 0 or n % 8:
        return "takes k from 1 and n in multiples of 8"
    return None


def _accepts(x: torch.Tensor, weight: QuantizedWeight) -> str | None:
    if refused := few_rows_refusal(x, weight, MOST_ROWS):
        return refused
    if weight.shape[0] < 12 * processors(x) and x.is_cuda:
        return "takes n that gives each multiprocessor 16 rows; v2's and v3's clusters share fewer"
    if stream_for(x, weight) is None:
        return "takes x that fits into shared memory"
    return hopper_refusal(x)


VARIANTS = {
    variant.name: variant
    for variant in (Variant("v6_stream", v6_stream, "v2's and v3's stream by TMA: a lane asks for a whole step; no barrier between tiles", FILE, _accepts),)
}
