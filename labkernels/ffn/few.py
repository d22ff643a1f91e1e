"""How v7_tf32 of `ffn` is launched: float32 for up to 64 tokens, a kernel for each product, and on what it can run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from labkernels.cuda.kernel import Kernel
from labkernels.cuda.variants import ceil_div, hopper_refusal, processors
from labkernels.ffn.reference import activation_number, is_gated, ready
from labkernels.operation import Variant, dtype_name

FILE = Path(__file__).with_name("v7_tf32.cu")
MOST_TOKENS, MOST_BY_FMA = 64, 4
WARPS, STEP = 8, 16  # as in v7_tf32.cu
SHARED_BYTES = 226 * 1024  # of a multiprocessor


@dataclass(frozen=True)
class Config:
    """The template arguments: sixteens of rows of a tile, eights of tokens (0: up to `few`, by FMAs), steps on their way; and blocks of a
    multiprocessor."""

    tiles: int
    eights: int
    ahead: int
    resident: int
    few: int = 1

    @property
    def shared_mem(self) -> int:
        return WARPS * self.ahead * (2 * self.tiles + max(1, self.eights)) * 512 + 4 * 16 * self.tiles * (8 * max(1, self.eights) + 4)


@functools.lru_cache(256)
def best_config(tokens: int, sixteens: int, blocks: int) -> Config:
    """For so many sixteens of rows of a weight, shared out to so many multiprocessors."""
    eights = 0 if tokens <= MOST_BY_FMA else 1 << (ceil_div(tokens, 8) - 1).bit_length()
    few = 1 << (tokens - 1).bit_length() if eights == 0 else 1
    tiles = 3 if eights == 8 and sixteens >= 8 * blocks else 2 if sixteens > blocks else 1
    resident = 1 if tiles * eights > 4 else 2
    ahead = 2
    while ahead < 8 and Config(tiles, eights, ahead + 1, resident, few).shared_mem <= SHARED_BYTES // resident:
        ahead += 1
    return Config(tiles, eights, ahead, resident, few)


_kernels: dict[tuple, Kernel] = {}


def v7_tf32(x, w1, w2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    return configured(None, None, x, w1, w2, b1, b2, activation)


def configured(first: Config | None, second: Config | None, x, w1, w2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    """v7 with these configurations of both products, or the best ones."""
    h = _linear(first, x, w1, b1, w2.shape[1], activation_number(activation), is_gated(activation), False)
    return _linear(second, h, w2, b2, w2.shape[0], 0, False, True)


def _linear(config, x, w, bias, rows: int, number: int, gated: bool, early: bool) -> torch.Tensor:
    """`early` where x comes from the kernel before, and w does not."""
    (tokens, k), at_once = x.shape, processors(x) if x.is_cuda else 2
    config = config or best_config(tokens, ceil_div(len(w), 16), at_once if x.device.type != "meta" else 132)
    y = torch.empty((tokens, rows), dtype=x.dtype, device=x.device)
    blocks = min(ceil_div(rows, (8 if gated else 16) * config.tiles), config.resident * at_once)
    strides = (matrix.stride(0) if len(matrix) > 1 else k for matrix in (x, w))
    _kernel(config, number, gated)(blocks, 32 * WARPS, (x, w, bias, y, tokens, k, rows, *strides), config.shared_mem, early=early)
    return y


def _kernel(config: Config, number: int, gated: bool) -> Kernel:
    key = config, number, gated
    if key not in _kernels:
        _kernels[key] = Kernel(FILE, f"ffn_tf32<{str(gated).lower()}, {number}, {config.tiles}, {config.eights}, {config.ahead}, {config.few}>")
    return _kernels[key]


def _accepts(x, w1, w2, b1=None, b2=None, activation="gelu") -> str | None:
    if x.dtype != torch.float32:
        return f"takes float32, not {dtype_name(x.dtype)}"
    if x.shape[0] > MOST_TOKENS:
        return f"takes at most {MOST_TOKENS} tokens"
    if x.shape[1] % STEP or w2.shape[1] % STEP:
        return f"takes embed and ffn that are multiples of {STEP}"
    return ready(x, w1, w2) or hopper_refusal(x)  # for its shared memory


V7_TF32 = Variant("v7_tf32", v7_tf32, "float32 for few tokens: tensor cores, each product three times in tf32", FILE, _accepts)
