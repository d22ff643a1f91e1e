"""How v6_rows of `ffn` is launched: one kernel for a few tokens, its strips of weights, and on what it can run."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from labkernels.cuda.kernel import Kernel
from labkernels.cuda.lasting import counters
from labkernels.cuda.variants import c_type, ceil_div, hopper_refusal, processors
from labkernels.ffn.reference import activation_number, is_gated, ready
from labkernels.operation import Variant

FILE = Path(__file__).with_name("v6_rows.cu")
MOST_TOKENS, THREADS = 16, 384
TEAMS, SLOTS, MOST_COLUMNS = 4, 8, 512  # as in v6_rows.cu; a multiple of TEAMS; and of a slot
SHARED_BYTES = 226 * 1024  # that a block may have, beside a few hundred for its mbarriers


@dataclass(frozen=True)
class Config:
    """The template arguments: room for so many tokens; units of h in a strip of W1 (gated: as many gates and ups) and columns in a slot; rows in a
    strip of W2 and columns in a slot; slots."""

    tokens: int
    units: int
    columns_1: int
    rows: int
    columns_2: int
    slots: int
    gated: bool
    item: int = 2  # bytes of an element

    @property
    def slot_bytes(self) -> int:
        first = 8 * ceil_div(self.units * (2 if self.gated else 1) // 8, TEAMS)
        return max((each + self.tokens) * (self.item * columns + 16) for each, columns in ((first, self.columns_1), (self.rows, self.columns_2)))

    @property
    def shared_mem(self) -> int:
        """The slots, and room for sums: of a strip of W1, or of each team's of one of W2."""
        strides = [ceil_div(rows, 32) * 32 + 8 for rows in (self.units * (2 if self.gated else 1), self.rows)]
        return self.slots * self.slot_bytes + 4 * self.tokens * max(strides[0], TEAMS * strides[1])


@functools.lru_cache(256)
def best_config(tokens: int, embed: int, ffn: int, gated: bool, blocks: int, item: int = 2) -> Config:
    """Strips as long as a block's share, if that fits: then each block has one of W1 and one of W2. Slots as wide as there is memory for."""

    def share(rows: int, most: int) -> int:
        turns = ceil_div(rows, blocks * most)
        return ceil_div(ceil_div(rows, blocks * turns), 8) * 8

    room = next(room for room in (4, 8, 16) if room >= tokens)
    units, rows = share(ffn, 112 if gated else 224), share(embed, 64)
    config = Config(room, units, 32, rows, 32, SLOTS, gated, item)
    for columns in range(64, MOST_COLUMNS + 1, 32):
        for wider in (replace(config, columns_1=columns), replace(config, columns_2=columns)):
            if wider.shared_mem <= SHARED_BYTES:
                config = replace(config, columns_1=max(config.columns_1, wider.columns_1), columns_2=max(config.columns_2, wider.columns_2))
    return config


_kernels: dict[tuple, Kernel] = {}


def progress(device: torch.device) -> torch.Tensor:
    """Three zeros, which the kernel leaves as zeros; those of two launches in a row differ, since v6_boxes hands out strips before it has waited."""
    return counters(3, device, turns=2)


def v6_rows(x, w1, w2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    return configured(None, x, w1, w2, b1, b2, activation)


def configured(config: Config | None, x, w1, w2, b1=None, b2=None, activation="gelu", phases=(3,), blocks=None) -> torch.Tensor:
    """v6 with this configuration, or the best one; `phases` (3,) is one launch for both products, (1, 2) one for each."""
    (tokens, embed), ffn, gated = x.shape, w2.shape[1], is_gated(activation)
    y = torch.empty((tokens, embed), dtype=x.dtype, device=x.device)
    blocks = blocks or (processors(x) if x.is_cuda else 1)  # the emulator's blocks need not run at the same time
    at_once = {"cuda": blocks, "cpu": 4}.get(x.device.type, 132)  # small strips in the emulator; without memory, an H200's
    config = config or best_config(tokens, embed, ffn, gated, at_once, x.element_size())
    h = torch.empty((tokens, ffn), dtype=x.dtype, device=x.device)
    strides = (matrix.stride(0) if matrix.shape[0] > 1 else matrix.shape[1] for matrix in (x, w1, w2))
    args = (x, w1, w2, b1, b2, h, y, tokens, embed, ffn, *strides, progress(x.device))
    kernel = _kernel(config, x.dtype, activation)
    for phase in phases:
        kernel(blocks, THREADS, (*args, phase), config.shared_mem)
    return y


def _kernel(config: Config, dtype: torch.dtype, activation: str) -> Kernel:
    key = config, dtype, activation
    if key not in _kernels:
        sizes = (activation_number(activation), config.tokens, config.units, config.columns_1, config.rows, config.columns_2, config.slots)
        _kernels[key] = Kernel(FILE, f"ffn_rows<{c_type(dtype)}, {', '.join(map(str, sizes))}>")
    return _kernels[key]


def _accepts(x, w1, w2, b1=None, b2=None, activation="gelu") -> str | None:
    if x.shape[0] > MOST_TOKENS:
        return f"takes at most {MOST_TOKENS} tokens"
    if x.shape[1] % 32 or w2.shape[1] % 32:
        return "takes embed and ffn that are multiples of 32"
    return ready(x, w1, w2) or hopper_refusal(x)


V6_ROWS = Variant("v6_rows", v6_rows, "one kernel too, which reads rows by cp.async, in longer pieces; float32 as well", FILE, _accepts)
