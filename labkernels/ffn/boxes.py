"""How v6_boxes of `ffn` is launched: one kernel for a few tokens, which the copy engine feeds with boxes; and the same as two kernels."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from labkernels.cuda.kernel import Kernel
from labkernels.cuda.settled import launch_beside
from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import c_type, ceil_div, hopper_refusal, processors
from labkernels.ffn.reference import activation_number, is_gated, ready
from labkernels.ffn.single import MOST_TOKENS, progress
from labkernels.operation import Variant, dtype_name

FILE = Path(__file__).with_name("v6_boxes.cu")
BOX, THREADS, TEAMS = 64, 288, 2
SHARED_BYTES = 226 * 1024  # that a block may have


@dataclass(frozen=True)
class Config:
    """The template arguments: room for so many tokens; rows of W1 (of gates and of ups each) and boxes of 64 columns in a slot, the same of W2; and
    the slots."""

    tokens: int
    units: int
    boxes_1: int
    rows: int
    boxes_2: int
    slots: int
    gated: bool

    @property
    def slot_bytes(self) -> int:
        return max(slot_bytes(self.units, self.boxes_1, self.tokens), slot_bytes(self.rows, self.boxes_2, self.tokens))

    @property
    def shared_mem(self) -> int:
        return self.slots * self.slot_bytes + room_bytes(self.units, self.rows, self.tokens, self.gated)


def slot_bytes(rows: int, boxes: int, tokens: int) -> int:
    """Rows of weights and tokens, as many boxes of 128 bytes of each; the next slot begins on 1024."""
    return ceil_div((rows + tokens) * boxes * 2 * BOX, 1024) * 1024


def room_bytes(units: int, rows: int, tokens: int, gated: bool) -> int:
    """For the sums, a float for each token and row: of both halves of a gated strip, or of both teams."""
    first = stride(2 * units) if gated else TEAMS * stride(units)
    return 4 * tokens * max(first, TEAMS * stride(rows))


def stride(rows: int) -> int:
    return ceil_div(rows, 32) * 32 + 8


@functools.lru_cache(256)
def best_config(tokens: int, embed: int, ffn: int, gated: bool, blocks: int) -> Config:
    """Strips as long as a block's share, if that fits: then each block has one of W1 and one of W2. Six slots, or as many as leave room for three
    boxes of W1; and boxes as many as fit, an odd number."""

    def share(rows: int, most: int) -> int:
        turns = ceil_div(rows, blocks * most)
        return ceil_div(ceil_div(rows, blocks * turns), 8) * 8

    room = next(room for room in (4, 8, 16) if room >= tokens)
    units, rows = share(ffn, 112 if gated else 192), share(embed, 64)
    for slots in (6, 4, 2):
        most = (SHARED_BYTES - room_bytes(units, rows, room, gated)) // slots
        boxes_1, boxes_2 = (_odd_boxes(columns, height, room, most) for columns, height in ((embed, units), (ffn, rows)))
        if boxes_1 >= min(3, embed // BOX // 2):
            break
    return Config(room, units, boxes_1, rows, boxes_2, slots, gated)


def _odd_boxes(columns: int, rows: int, tokens: int, most_bytes: int) -> int:
    """The most boxes that a slot of so many bytes has room for; one, where columns do not come by 64."""
    if columns % BOX:
        return 1
    fitting = [n for n in range(1, min(columns // BOX, 15) + 1, 2) if slot_bytes(rows, n, tokens) <= most_bytes]
    return max(fitting, default=1)


def _map(matrix: torch.Tensor, boxes: int, rows: int):
    """Of a matrix whose columns come by 64, `boxes` of these at a time; or one at a time, of a matrix of any number of columns."""
    by_64 = matrix.unflatten(1, (-1, BOX)) if boxes > 1 else matrix.unsqueeze(1)
    return tensor_map(by_64, (rows, boxes, BOX), 128)


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
    config = config or best_config(tokens, embed, ffn, gated, at_once)
    h = torch.empty((tokens, ffn), dtype=x.dtype, device=x.device)
    maps = (
        _map(x, config.boxes_1, config.tokens),
        _map(w1, config.boxes_1, config.units),
        _map(h, config.boxes_2, config.tokens),
        _map(w2, config.boxes_2, config.rows),
    )
    args = (*maps, b1, b2, h, y, tokens, embed, ffn, progress(x.device))
    kernel = _kernel(config, x.dtype, activation)
    if phases == (3,):
        launch_beside(kernel, (w1, w2), blocks, THREADS, (*args, 3), config.shared_mem)
        return y
    for phase in phases:
        kernel(blocks, THREADS, (*args, phase), config.shared_mem)
    return y


def _kernel(config: Config, dtype: torch.dtype, activation: str) -> Kernel:
    key = config, dtype, activation
    if key not in _kernels:
        sizes = (activation_number(activation), config.tokens, config.units, config.boxes_1, config.rows, config.boxes_2, config.slots)
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
