"""Pictures of shared memory: a transpose that goes through a tile, and the banks in which a tile's words lie."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, Rectangle

from labkernels.lab import style

KINDS = ("plain", "padded", "swizzled")


def bank_of(kind: str, row: int, col: int, banks: int = 32) -> int:
    """The bank of element (row, col) of a tile as wide as there are banks, laid out in one of KINDS."""
    if kind not in KINDS:
        raise ValueError(f"a tile is laid out {', '.join(KINDS)}, not {kind!r}")
    place = row * (banks + 1) + col if kind == "padded" else row * banks + (col ^ row if kind == "swizzled" else col)
    return place % banks


@style.look()
def transpose_tile(size: int = 4) -> style.Picture:
    """A block's part of a transpose: a tile is read along rows of x, turned in shared memory, and written along rows of out."""
    figure, axes = style.figure(height=2.3)
    lane, wide, gap = 1, 3 * size, 2.2
    lefts = [0.0, wide + gap, wide + size + 2 * gap]
    for left, cols, rows, name in ((lefts[0], wide, 2 * size, "x"), (lefts[2], 2 * size, wide, "out")):
        top = wide / 2 + rows / 2
        axes.add_patch(Rectangle((left, top - rows), cols, rows, facecolor=style.LIGHT, edgecolor="none"))
        axes.text(left, top + 0.25, name, ha="left", va="bottom", fontweight="bold")
    x_row, x_col = 0, size
    x_top, out_top = wide / 2 + size, float(wide)
    tile_top = wide / 2 + size / 2
    _grid(axes, lefts[0] + x_col, x_top - x_row, size, marked={(lane, c): c for c in range(size)})
    _grid(axes, lefts[1], tile_top, size, marked={(lane, c): c for c in range(size)} | {(r, 2): r for r in range(size) if r != lane}, second=2)
    _grid(axes, lefts[2] + x_row, out_top - x_col, size, marked={(2, c): c for c in range(size)}, second=None, all_second=True)
    axes.text(lefts[1] + size / 2, tile_top + 0.25, "tile", ha="center", va="bottom", fontweight="bold")
    axes.text(lefts[1] + size / 2, tile_top - size - 0.25, "shared\nmemory", ha="center", va="top", fontsize=9, color=style.GREY)
    y_row = tile_top - lane - 0.5
    _arrow(axes, (lefts[0] + x_col + size + 0.1, x_top - lane - 0.5), (lefts[1] - 0.1, y_row), style.BLUE)
    _arrow(axes, (lefts[1] + size + 0.1, tile_top - size / 2), (lefts[2] + x_row - 0.1, out_top - x_col - 2.5), style.GREEN)
    axes.text(lefts[0] + wide / 2, x_top - 2 * size - 0.25, "a row is read", ha="center", va="top", fontsize=9, color=style.BLUE)
    axes.text(lefts[2] + 2 * size + 0.4, out_top - x_col - 2.5, "a column of the tile\nis a row of out", ha="left", va="center", fontsize=9, color=style.GREEN)
    axes.set_xlim(-0.3, lefts[2] + 2 * size + 8.2)
    axes.set_ylim(-0.4, wide + 1.4)
    axes.set_aspect("equal")
    axes.axis("off")
    return style.picture(
        figure,
        f"A tile of {size} by {size} elements on its way from x through shared memory to out. Its rows are read along rows of x and become rows of "
        f"the tile. Each column of the tile is written along a row of out, at the mirrored place.",
    )


@style.look()
def tile_banks(banks: int = 8, col: int = 2) -> style.Picture:
    """A tile in shared memory, plain, padded and swizzled: each element's bank as colour and number, one column outlined."""
    figure, panels = style.figure(1, len(KINDS), height=2.45)
    told = []
    for axes, kind in zip(panels, KINDS):
        for row in range(banks):
            for place in range(banks + (kind == "padded")):
                logical = place ^ row if kind == "swizzled" else place
                bank = (row * (banks + (kind == "padded")) + place) % banks
                spare, mine = place == banks, logical == col
                axes.add_patch(Rectangle((place, -row - 1), 1, 1, facecolor=_colour(bank, banks), alpha=0.25 if spare else 1.0, edgecolor=style.PAPER))
                if mine:
                    axes.add_patch(Rectangle((place + 0.06, -row - 0.94), 0.88, 0.88, fill=False, edgecolor=style.INK, linewidth=1.8))
                axes.text(place + 0.5, -row - 0.5, f"{bank}", ha="center", va="center", fontsize=8, fontweight="bold" if mine else "normal", color=style.GREY if spare else style.INK)
        found = {bank_of(kind, row, col, banks) for row in range(banks)}
        told.append(f"{kind}: the column lies in {len(found)} bank{'s' if len(found) > 1 else ''}")
        axes.set_title(f"{kind}: {len(found)} bank{'s' if len(found) > 1 else ''}", fontsize=10)
        axes.set_xlim(-0.1, banks + 1.1)
        axes.set_ylim(-banks - 0.1, 0.1)
        axes.set_aspect("equal", anchor="NW")
        axes.axis("off")
    return style.picture(
        figure,
        f"A tile of {banks} by {banks} words three times, in a memory of {banks} banks, each word with its bank; the words of column {col} are outlined. {'; '.join(told)}.",
    )


def _grid(axes: Axes, left: float, top: float, size: int, marked: dict, second: int | None = None, all_second: bool = False) -> None:
    for row in range(size):
        for col in range(size):
            turned = all_second or col == second
            face = style.LIGHT if (row, col) not in marked else style.GREEN if turned else style.BLUE
            axes.add_patch(Rectangle((left + col, top - row - 1), 1, 1, facecolor=face, alpha=0.75, edgecolor=style.PAPER, linewidth=1.2))
    axes.add_patch(Rectangle((left, top - size), size, size, fill=False, edgecolor=style.INK, linewidth=1.2))


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, linewidth=1.5))


def _colour(bank: int, banks: int) -> tuple[float, ...]:
    """One of the book's colours, paler in the second half of the banks."""
    base = to_rgb(style.SERIES[bank % len(style.SERIES)])
    strength = 0.5 if bank < len(style.SERIES) else 0.25
    return tuple(1 - strength * (1 - part) for part in base)
