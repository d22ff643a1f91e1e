"""How v6_boxes of `ffn` is launched: one kernel for a few tokens, which the copy engine feeds with boxes; and the same as two kernels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from labkernels.cuda.early_launch import launch_early
from labkernels.cuda.kernel import Kernel
from labkernels.cuda.settled import settled
from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import c_type, ceil_div, hopper_refusal, processors
from labkernels.ffn.reference import activation_number, is_gated, ready
from labkernels.ffn.single import MOST_TOKENS, progress
from labkernels.operation import Variant, dtype_name

FILE = Path(__file__).with_name("v6_boxes.cu")
BOX, THREADS = 64, 288
SHARED_BYTES, SLOT_BYTES = 226 * 1024, 48 * 1024  # that a block may have, and that a slot should have


@dataclass(frozen=True)
class Config:
    """The template arguments: rows of W1 (of gates and of ups each) and boxes of 64 columns in a slot, the same of W2, and the slots."""

    units: int
    boxes_1: int
    rows: int
    boxes_2: int
    slots: int
    gated: bool

    @property
    def shared_mem(self) -> int:
        first = self.units * (2 if self.gated else 1)
        return self.slots * slot_bytes(first, self.boxes_1, self.rows, self.boxes_2) + room_bytes(first, self.rows)


def slot_bytes(first: int, boxes_1: int, rows: int, boxes_2: int) -> int:
    return max((first + 16) * 128 * boxes_1, (rows + 16) * 128 * boxes_2)


def room_bytes(first: int, rows: int) -> int:
    """For the sums of both teams, each a float for 16 tokens and a row."""
    return 2 * MOST_TOKENS * 4 * (ceil_div(max(first, rows), 32) * 32 + 8)


def best_config(embed: int, ffn: int, gated: bool, blocks: int) -> Config:
    """Strips as long as a block's share, if that fits: then each block has one of W1 and one of W2."""

    def share(rows: int, most: int) -> int:
        turns = ceil_div(rows, blocks * most)
        return ceil_div(ceil_div(rows, blocks * turns), 8) * 8

    units, rows = share(ffn, 112 if gated else 192), share(embed, 64)
    first = units * (2 if gated else 1)
    boxes_1, boxes_2 = (min(8, max(1, SLOT_BYTES // ((each + 16) * 128))) for each in (first, rows))
    slots = (SHARED_BYTES - room_bytes(first, rows)) // slot_bytes(first, boxes_1, rows, boxes_2)
    return Config(units, boxes_1, rows, boxes_2, min(slots // 2 * 2, 12), gated)


_kernels: dict[tuple, Kernel] = {}


def v6_boxes(x, w1, w2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    return configured(None, x, w1, w2, b1, b2, activation)


def v6_two_kernels(x, w1, w2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    return configured(None, x, w1, w2, b1, b2, activation, phases=(1, 2))


def configured(config: Config | None, x, w1, w2, b1=None, b2=None, activation="gelu", phases=(3,), blocks=None) -> torch.Tensor:
    """v6 with this configuration, or the best one; `phases` (3,) is one launch for both products, (1, 2) one for each. One launch for both begins
    before the kernel before has ended, and asks for weights meanwhile, where nobody can be writing them."""
    (tokens, embed), ffn, gated = x.shape, w2.shape[1], is_gated(activation)
    y = torch.empty((tokens, embed), dtype=x.dtype, device=x.device)
    blocks = blocks or (processors(x) if x.is_cuda else 1)  # the emulator's blocks need not run at the same time
    at_once = {"cuda": blocks, "cpu": 4}.get(x.device.type, 132)  # small strips in the emulator; without memory, an H200's
    config = config or best_config(embed, ffn, gated, at_once)
    h = torch.empty((tokens, ffn), dtype=x.dtype, device=x.device)
    maps = (
        tensor_map(x, (MOST_TOKENS, BOX), 128),
        tensor_map(w1, (config.units, BOX), 128),
        tensor_map(h, (MOST_TOKENS, BOX), 128),
        tensor_map(w2, (config.rows, BOX), 128),
    )
    args = (*maps, b1, b2, h, y, tokens, embed, ffn, progress(x.device))
    kernel = _kernel(config, x.dtype, activation)
    if phases == (3,) and settled(w1, w2):
        launch_early(kernel, x.device, (blocks, 1, 1), (THREADS, 1, 1), (*args, 3), config.shared_mem)
        return y
    for phase in phases:
        kernel(blocks, THREADS, (*args, phase), config.shared_mem)
    return y


def _kernel(config: Config, dtype: torch.dtype, activation: str) -> Kernel:
    key = config, dtype, activation
    if key not in _kernels:
        sizes = (activation_number(activation), config.units, config.boxes_1, config.rows, config.boxes_2, config.slots)
        _kernels[key] = Kernel(FILE, f"ffn_boxes<{c_type(dtype)}, {', '.join(map(str, sizes))}>")
    return _kernels[key]


def _accepts(x, w1, w2, b1=None, b2=None, activation="gelu") -> str | None:
    if x.dtype not in (torch.bfloat16, torch.float16):
        return f"takes bfloat16 and float16, not {dtype_name(x.dtype)}"
    if x.shape[0] > MOST_TOKENS:
        return f"takes at most {MOST_TOKENS} tokens"
    return ready(x, w1, w2) or hopper_refusal(x)


V6_TWO_KERNELS = Variant("v6_two_kernels", v6_two_kernels, "a few tokens: both products as streams of weights, a kernel each", FILE, _accepts)
V6_BOXES = Variant("v6_boxes", v6_boxes, "both in one kernel, whose stream of weights does not stop between them; TMA brings boxes", FILE, _accepts)
