"""How each version of `quant_matmul` is launched, and on what it can run. Each takes (x, weight) and returns a new (m, n) of x.dtype."""

from __future__ import annotations

import functools
import importlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from labkernels.cuda.kernel import MAX_GRID, Kernel
from labkernels.cuda.variants import c_type, ceil_div, kernel
from labkernels.operation import Variant
from labkernels.quant.early_launch import launch
from labkernels.quant.formats import FOUR_BIT, QuantizedWeight
from labkernels.quant.selection import slower

FOLDER = Path(__file__).parent
MOST_ROWS = 8  # of x, for a GEMV: the columns of one mma
TABLE_BYTES = 32 * 1024  # of v3: one word for each byte and bank
SM_SHARED = 227 * 1024  # bytes of an SM's shared memory
MOST_STAGED = 150 * 1024  # bytes of x in the blocks of an SM
MOST_SHARED = 200 * 1024  # bytes a block may ask for
_NAIVE = {"int4": 0, "nf4": 1, "codebook": 1, "int8": 2, "fp8": 3}
_FORMAT = {"int4": "Int4", "int8": "Int8", "fp8": "Fp8"}


@dataclass(frozen=True)
class Stream:
    """`warps` of a block and `splits` blocks of a cluster share k; `ahead` steps of 64 bytes a row are on their way in each warp;
    registers are shared out so that `blocks` fit an SM, of which `resident` are
    launched: where there is room left, the next kernel's blocks can ask for their weights while these still run."""

    warps: int
    ahead: int
    splits: int = 1
    blocks: int = 2
    resident: int = 2


def v1_naive(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    (m, k), n = x.shape, weight.shape[0]
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if y.numel():
        x = x if x.stride(1) == 1 or k <= 1 else x.contiguous()
        args = (x, weight.packed, weight.scales, weight.codebook, y, m, n, k, x.stride(0), row_bytes(weight), weight.group_size or 1)
        kernel(FOLDER / "v1_naive.cu", "quant_matmul_naive", x.dtype, _NAIVE[weight.scheme])((ceil_div(n, 64), m), 64, args)
    return y


def v2_gemv(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    return streamed(stream_for(x, weight), x, weight)


def v3_lut(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    return streamed(stream_for(x, weight), x, weight, lut=True)


def streamed(config: Stream, x: torch.Tensor, weight: QuantizedWeight, lut: bool = False) -> torch.Tensor:
    """v2_gemv or v3_lut with this configuration."""
    (m, k), n = x.shape, weight.shape[0]
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    x = x if x.stride(1) == 1 or k <= 1 else x.contiguous()
    spans = 128 // weight.group_size if weight.group_size else 1
    scheme = "lut" if lut else weight.scheme
    launched = _kernel(x.dtype, scheme, weight.scheme == "int4", spans, staged_rows(m), config)
    x_bytes = staged_bytes(m, weight, config)
    aligned = x.data_ptr() % 16 == 0 and (m == 1 or x.stride(0) % 8 == 0)
    args = (
        x, weight.packed, weight.scales, weight.codebook, y, m, n, k, x.stride(0), row_bytes(weight), weight.groups,
        struct.pack("<2i", *divmod(ceil_div(row_bytes(weight), 64), config.warps * config.splits)), int(aligned), x_bytes,
    )  # fmt: skip
    shared = config.warps * x_bytes + TABLE_BYTES * lut
    cluster = (1, config.splits) if config.splits > 1 else None
    blocks = min(ceil_div(n, 16), max(1, processor_count(x.device) * min(config.resident, max(1, SM_SHARED // (shared + 4096))) // config.splits))
    launch(launched, weight, (blocks, config.splits), 32 * config.warps, args, shared, cluster)
    return y


def stream_for(x: torch.Tensor, weight: QuantizedWeight) -> Stream:
    """How to cut the work so that all SMs have some, and x fits beside it."""
    return _stream_for(x.device, x.shape[0], weight.scheme, weight.group_size, weight.shape[0], row_bytes(weight))


@functools.lru_cache(maxsize=4096)
def _stream_for(device: torch.device, m: int, scheme: str, group_size: int | None, n: int, bytes_of_row: int) -> Stream:
    config, sms = Stream(2, 4) if device.type == "cpu" else tuned(scheme, staged_rows(m)), processor_count(device)
    tiles, steps, splits = ceil_div(n, 16), ceil_div(bytes_of_row, 64), 1
    clusters = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)
    while clusters and splits < 8 and tiles * splits < sms and steps >= 2 * config.warps * splits:
        splits *= 2
    most = MOST_STAGED // (config.warps * config.resident)
    while clusters and splits < 8 and _staged(m, scheme, group_size, bytes_of_row, replace(config, splits=splits)) > most:
        splits *= 2
    return replace(config, splits=splits)


@functools.cache
def processor_count(device: torch.device) -> int:
    """How many multiprocessors there are; 2 in the emulator."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def tuned(scheme: str, rows: int) -> Stream:
    """What was fastest on an H200 for so many rows of x, of those that spill no registers."""
    if rows == 8:
        return Stream(16, 2, blocks=1, resident=1)
    return Stream(16, 2) if rows == 1 else Stream(8, 4)


def staged_bytes(m: int, weight: QuantizedWeight, config: Stream) -> int:
    """Shared memory for a warp's part of x: 128 of k a step, 64 where a number has 8 bits; and for the sum of each group."""
    return _staged(m, weight.scheme, weight.group_size, row_bytes(weight), config)


def _staged(m: int, scheme: str, group_size: int | None, bytes_of_row: int, config: Stream) -> int:
    steps = ceil_div(ceil_div(bytes_of_row, 64), config.warps * config.splits)
    sums = 4 * 128 // group_size if group_size else 0
    return ceil_div(steps * staged_rows(m) * ((256 if scheme in FOUR_BIT else 128) + sums), 16) * 16


def staged_rows(m: int) -> int:
    """Rows of x for which a kernel is made: m or the next power of two."""
    return 1 << max(0, m - 1).bit_length()


def row_bytes(weight: QuantizedWeight) -> int:
    """From one row of the weight to the next."""
    return weight.packed.shape[1] * weight.packed.element_size()


@functools.lru_cache(None)
def _kernel(dtype: torch.dtype, scheme: str, has_zeros: bool, spans: int, rows: int, config: Stream) -> Kernel:
    sizes = f"{spans}, {rows}, {config.warps}, {config.ahead}, {config.blocks}"
    if scheme == "lut":
        return Kernel(FOLDER / "v3_lut.cu", f"quant_matmul_lut<{c_type(dtype)}, {str(has_zeros).lower()}, {sizes}>")
    return Kernel(FOLDER / "v2_gemv.cu", f"quant_matmul_gemv<{_FORMAT[scheme]}, {c_type(dtype)}, {sizes}>")


def _naive_accepts(x: torch.Tensor, weight: QuantizedWeight) -> str | None:
    return f"takes at most {MAX_GRID[1]} rows of x" if x.shape[0] > MAX_GRID[1] else None


def _stream_accepts(x: torch.Tensor, weight: QuantizedWeight) -> str | None:
    if x.dtype == torch.float32:
        return "takes x of 16 bits, as tensor cores do"
    if x.shape[0] > MOST_ROWS:
        return f"up to {MOST_ROWS} rows of x"
    if x.shape[1] == 0:
        return "takes k from 1"
    if row_bytes(weight) * weight.shape[0] >= 1 << 32:
        return "takes weights of less than 4 GiB"
    config = stream_for(x, weight)
    if config.warps * staged_bytes(x.shape[0], weight, config) + TABLE_BYTES > MOST_SHARED:
        return "takes x that fits into the shared memory of a cluster"
    return None


def _gemv_accepts(x: torch.Tensor, weight: QuantizedWeight) -> str | None:
    if weight.scheme not in _FORMAT:
        return f"unpacks by arithmetic, which {weight.scheme}'s numbers do not follow"
    return _stream_accepts(x, weight)


def _lut_accepts(x: torch.Tensor, weight: QuantizedWeight) -> str | None:
    if weight.scheme not in FOUR_BIT:
        return f"looks up codes of 4 bits; {weight.scheme} has 8"
    return _stream_accepts(x, weight)


_OURS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "a thread an element, which unpacks each number", FOLDER / "v1_naive.cu", _naive_accepts),
        Variant("v2_gemv", v2_gemv, "a stream of 16-byte loads; lop3 unpacks pairs for the tensor cores", FOLDER / "v2_gemv.cu", _gemv_accepts),
        Variant("v3_lut", v3_lut, "the same stream; a table in shared memory, one a bank, turns bytes into pairs", FOLDER / "v3_lut.cu", _lut_accepts),
    )
}


def _others() -> Mapping[str, Variant]:
    """Those of v4_variants.py and v5_variants.py, the tensor cores' tiles, and of v6_variants.py and v7_variants.py, streams by the copy engine."""
    found = {}
    for module in ("v4_variants", "v5_variants", "v6_variants", "v7_variants"):
        if (FOLDER / f"{module}.py").is_file():
            found |= importlib.import_module(f"labkernels.quant.{module}").VARIANTS
    return found


def _by_measurement(variant: Variant) -> Variant:
    """The same, refusing also where another one was measured to be faster."""
    return replace(variant, accepts=lambda x, weight: CAPABLE[variant.name](x, weight) or slower(variant.name, x, weight, CAPABLE))


_LADDER = {**_OURS, **_others()}
CAPABLE = {name: variant.accepts for name, variant in _LADDER.items()}  # what each can take, whether or not it should
VARIANTS = {name: _by_measurement(variant) for name, variant in _LADDER.items()}
