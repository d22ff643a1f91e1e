"""How each version of `gemv` is launched, and on what it can run. Each takes (x, w, norm_weight, residual, activation, eps, out_dtype, out) and returns y."""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from labkernels.cuda.early_launch import can_launch_early, launch_early
from labkernels.cuda.variants import ceil_div, kernel, processors, vector_width
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
WARPS = 8  # of a block of v1 and v2
STEP = 32  # of k, that v3's warps take at a time
MOST_ROWS = 64  # of x, in v3
LEAST_AHEAD = 4  # steps of v3
MOST_SHARED = 224 * 1024  # bytes that a block of v3 may ask for
SUMS = 17  # as in stream.cuh


@dataclass(frozen=True)
class Stream:
    """v3's template arguments and its grid: `warps` of a block and `splits` blocks of a cluster share k; each warp has `ahead` steps of 1 KB on their way;
    registers allow `blocks` on an SM, of which `resident` are launched: where there is room left, the next kernel's blocks begin early."""

    warps: int
    ahead: int
    blocks: int = 2
    resident: int = 1
    splits: int = 1

    def shared_mem(self, m: int, k: int, norm: bool) -> int:
        parts = self.warps * self.splits
        staged = self.warps * ceil_div(k // STEP, parts) * 64 * (m + norm)
        return 1024 * self.warps * self.ahead + staged + 4 * SUMS * 2 * m * (self.warps + (self.splits if self.splits > 1 else 0))

    @functools.cached_property
    def cluster(self) -> tuple[int, int, int] | None:
        return (1, self.splits, 1) if self.splits > 1 else None


def v1_naive(x, w, norm_weight=None, residual=None, activation=None, eps=1e-5, out_dtype=None, out=None) -> torch.Tensor:
    return _one_row_each("gemv_naive", "v1_naive.cu", (), x, w, norm_weight, residual, activation, eps, out_dtype, out)


def v2_vectors(x, w, norm_weight=None, residual=None, activation=None, eps=1e-5, out_dtype=None, out=None) -> torch.Tensor:
    tail = (16 // x.element_size(), 4)
    return _one_row_each("gemv_vectors", "v2_vectors.cu", tail, x, w, norm_weight, residual, activation, eps, out_dtype, out)


def v3_stream(x, w, norm_weight=None, residual=None, activation=None, eps=1e-5, out_dtype=None, out=None) -> torch.Tensor:
    config = stream_for(x.device, len(x), *w.shape, norm_weight is not None)
    return streamed(config, x, w, norm_weight, residual, activation, eps, out_dtype, out)


def streamed(config, x, w, norm_weight=None, residual=None, activation=None, eps=1e-5, out_dtype=None, out=None, early=False) -> torch.Tensor:
    """v3 with this configuration. `early`: without waiting for the kernel before; w and norm_weight must not be written by it."""
    (m, k), n = x.shape, w.shape[0]
    gated = activation is not None
    y = _result(x, w, gated, out_dtype, out)
    if not y.numel():
        return y
    tiles = ceil_div(n, 16)
    run = kernel(
        FOLDER / "v3_stream.cu", "gemv_stream", x.dtype, y.dtype, _cpp(norm_weight is not None), _cpp(gated), column_tiles(m), config.warps,
        config.ahead, config.blocks,
    )  # fmt: skip
    args = (x, w, norm_weight, residual, y, sizes(config, m, n, k, tiles, eps, x.stride(0)))
    launch_stream(run, config, x.device, tiles, args, config.shared_mem(m, k, norm_weight is not None), early)
    return y


def sizes(config: Stream, m: int, n: int, k: int, tiles: int, eps: float, x_stride: int) -> bytes:
    """stream.cuh's `Sizes`."""
    return struct.pack("<6ifi", m, n, k, tiles, *divmod(k // STEP, config.warps * config.splits), eps, x_stride)


def launch_stream(run, config: Stream, device: torch.device, tiles: int, args: tuple, shared: int, early: bool) -> None:
    """A persistent grid: as many clusters as run at a time, or as there are tiles."""
    at_once = processor_count(device) * config.resident // config.splits
    grid = (min(tiles, max(1, at_once)), config.splits)
    if early and can_launch_early(device):
        launch_early(run, device, (*grid, 1), (32 * config.warps, 1, 1), args, shared, config.cluster)
    else:
        run(grid, 32 * config.warps, args, shared, cluster=config.cluster)


@functools.lru_cache(maxsize=4096)
def stream_for(device: torch.device, m: int, n: int, k: int, norm: bool) -> Stream:
    """How to cut the work. Who adds up what does not depend on m among up to 4 rows of x, nor up to 8 where k is no more than 8192: then neither do
    the bits of a row's result."""
    rows = 4 if m <= 4 else 8 * column_tiles(m)
    config = Stream(2, 4) if device.type == "cpu" else _tuned(n, k)
    while config.splits < 8 and replace(config, ahead=LEAST_AHEAD).shared_mem(rows, k, norm) > MOST_SHARED:
        config = replace(config, splits=2 * config.splits)  # a cluster's barriers cost 2 us: only where x does not fit
    while config.shared_mem(m, k, norm) > MOST_SHARED // config.resident and config.ahead > LEAST_AHEAD:
        config = replace(config, ahead=config.ahead - 2) if config.ahead > 6 or config.resident == 1 else replace(config, resident=1, ahead=12)
    return config


def _tuned(n: int, k: int) -> Stream:
    """What was fastest on an H200 with one row of x, of those that spill no registers; launched early, each after one of its kind."""
    if n >= 8192:
        return Stream(8, 12, resident=2)
    return Stream(16, 12, blocks=1) if k >= 4096 else Stream(8, 12)


@functools.cache
def processor_count(device: torch.device) -> int:
    return processors(torch.empty(0, device=device))


def column_tiles(m: int) -> int:
    """Tiles of 8 rows of x for which a kernel is made: 1, 2, 4 or 8."""
    return max(1, 1 << (ceil_div(m, 8) - 1).bit_length())


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
    m, (n, k) = len(x), w.shape
    if m > MOST_ROWS:
        return f"takes at most {MOST_ROWS} rows of x"
    if k % STEP:
        return f"takes a k of a multiple of {STEP}"
    config = stream_for(x.device, m, n, k, norm_weight is not None)
    if config.shared_mem(m, k, norm_weight is not None) > MOST_SHARED:
        return f"takes rows of x that fit into shared memory; {m} of {k} do not"
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
