"""Where a result is wrong, at a glance: a grid of at most 8 by 16 marks, each standing for a tile of elements."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

import torch

from labkernels.lab.style import GREEN, GREY, RED

MAX_ROWS, MAX_COLS = 8, 16
RIGHT, WRONG, UNWRITTEN, NOT_FINITE = ".", "X", "_", "?"
_MEANING = {RIGHT: "right", WRONG: "wrong", UNWRITTEN: "not written", NOT_FINITE: "nan or inf"}
_COLOUR = {RIGHT: GREEN, WRONG: RED, UNWRITTEN: GREY, NOT_FINITE: RED}


@dataclass(frozen=True)
class ErrorMap:
    """`marks` are lines of equal length; one mark stands for `tile` = (rows, cols) elements. `title` says of which matrix."""

    marks: tuple[str, ...]
    tile: tuple[int, int]
    title: str = ""

    def __str__(self) -> str:
        kinds = [kind for kind in _MEANING if any(kind in line for line in self.marks)]
        legend = ", ".join(f"{kind} {_MEANING[kind]}" for kind in kinds)
        heading = ", ".join(part for part in (self.title, f"one mark for {_tile_text(self.tile)}: {legend}") if part)
        return "\n".join([heading, *self.marks])

    def _repr_html_(self) -> str:
        def square(mark):
            return f"<td title='{_MEANING[mark]}' style='background:{_COLOUR[mark]};width:12px;height:12px;padding:0;border:1px solid #fff'></td>"

        rows = "".join("<tr>" + "".join(map(square, line)) + "</tr>" for line in self.marks)
        caption = html.escape(str(self).splitlines()[0])
        return f"<div>{caption}<table style='border-collapse:collapse;margin:0'>{rows}</table></div>"


def error_map(wrong: torch.Tensor, unwritten: torch.Tensor, not_finite: torch.Tensor, index: tuple[int, ...], axes: tuple[str, ...]) -> ErrorMap | None:
    """The map of the matrix (last two axes) that holds element `index`; None for a result too small to need one.

    The three masks have the result's shape. A tile shows the worst of its elements: not written, then nan, then wrong.
    """
    if wrong.dim() == 0 or wrong.numel() < 4:
        return None
    leading = index[:-2]
    masks = [mask[leading].reshape(-1, mask.shape[-1]).cpu() for mask in (unwritten, not_finite, wrong)]
    rows, cols = masks[0].shape
    tile = (math.ceil(rows / MAX_ROWS), math.ceil(cols / MAX_COLS))
    pooled = [_any_in_tiles(mask, tile) for mask in masks]

    def mark(row, col):
        return next((kind for kind, mask in zip((UNWRITTEN, NOT_FINITE, WRONG), pooled) if mask[row, col]), RIGHT)

    marks = tuple("".join(mark(row, col) for col in range(pooled[0].shape[1])) for row in range(pooled[0].shape[0]))
    title = ", ".join(f"{axis} {position}" for axis, position in zip(axes, leading))
    return ErrorMap(marks, tile, title)


def _any_in_tiles(mask: torch.Tensor, tile: tuple[int, int]) -> torch.Tensor:
    rows, cols = mask.shape
    padded = torch.nn.functional.pad(mask, (0, -cols % tile[1], 0, -rows % tile[0]))
    return padded.unflatten(0, (-1, tile[0])).unflatten(2, (-1, tile[1])).any(dim=3).any(dim=1)


def _tile_text(tile: tuple[int, int]) -> str:
    rows, cols = tile
    if rows * cols == 1:
        return "each element"
    return f"{cols} elements" if rows == 1 else f"{rows} rows x {cols} cols"
