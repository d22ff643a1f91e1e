"""Pictures of Hopper: a ring of two stages with its mbarriers, the tile that a descriptor describes, and a block with professions."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from labkernels.lab import style


@dataclass(frozen=True)
class Ring:
    """When tile k has been asked for, has come, is being used and has been used: lists over k."""

    asked: tuple[float, ...]
    come: tuple[float, ...]
    begun: tuple[float, ...]
    used: tuple[float, ...]


def ring(tiles: int, stages: int, copy: float = 2.0, use: float = 3.0) -> Ring:
    """A producer and a consumer with a ring of `stages` between them: copies and uses take turns, and a stage is never filled before it is used."""
    asked, come, begun, used = [], [], [], []
    for k in range(tiles):
        asked.append(max(come[k - 1] if k else 0.0, used[k - stages] if k >= stages else 0.0))
        come.append(asked[k] + copy)
        begun.append(max(come[k], used[k - 1] if k else 0.0))
        used.append(begun[k] + use)
    return Ring(tuple(asked), tuple(come), tuple(begun), tuple(used))


@style.look()
def mbarrier_phases(tiles: int = 6, stages: int = 2) -> style.Picture:
    """Time from left to right: what producer and consumer do, and the phase of each mbarrier with its parity."""
    times = ring(tiles, stages)
    end = times.used[-1] + 0.6
    names = ["copies", *(f"full[{s}]" for s in range(stages)), *(f"empty[{s}]" for s in range(stages)), "consumer"]
    figure, axes = style.figure(width=7.6, height=3.3)
    rows = {name: len(names) - 1 - i for i, name in enumerate(names)}
    for k in range(tiles):
        s = k % stages
        colour = style.SERIES[s]
        _span(axes, times.asked[k], times.come[k], rows["copies"], colour, f"{k}")
        _span(axes, times.begun[k], times.used[k], rows["consumer"], colour, f"tile {k}")
        for at, barrier in ((times.come[k], f"full[{s}]"), (times.used[k], f"empty[{s}]")):
            axes.plot([at, at], [rows[barrier] - 0.36, rows[barrier] + 0.36], color=style.INK, linewidth=2)
        _arrow(axes, times.come[k], rows["copies"] - 0.36, rows[f"full[{s}]"] + 0.38)
        _arrow(axes, times.used[k], rows["consumer"] + 0.36, rows[f"empty[{s}]"] - 0.38)
    told = []
    for s in range(stages):
        for barrier, ends in ((f"full[{s}]", times.come[s::stages]), (f"empty[{s}]", times.used[s::stages])):
            for phase, (start, stop) in enumerate(zip((0.0, *ends), (*ends, end))):
                if stop - start > 0.01:
                    _phase(axes, start, stop, rows[barrier], phase % 2)
            told.append(f"{barrier} ends its phases at {', '.join(f'{at:g}' for at in ends)}")
    axes.set_yticks(list(rows.values()), list(rows))
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.set_xlabel("time; in the barriers' rows: the parity of the phase that is going on")
    axes.set_xlim(0, end)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.spines["left"].set_visible(False)
    return style.picture(
        figure,
        f"A timeline of {tiles} tiles in {stages} stages. Each copy that has come ends a phase of its stage's full barrier and lets the consumer begin; each tile "
        f"that has been used ends a phase of its empty barrier and lets the next copy into that stage begin. Parities alternate 0, 1, 0. {'; '.join(told)}.",
    )


@style.look()
def wgmma_tile(rows: int = 64, marked: int = 1) -> style.Picture:
    """A swizzled tile in shared memory as wgmma reads it: slabs of 8 rows, and the 16 columns of one instruction."""
    figure, axes = style.figure(height=3.1)
    slabs, wide, high = rows // 8, 8.0, 0.62
    for slab in range(slabs):
        y = (slabs - 1 - slab) * high
        for part in range(4):
            mine = part == marked
            axes.add_patch(Rectangle((part * wide / 4, y), wide / 4, high, facecolor=style.BLUE if mine else style.MEMORY["shared"], alpha=0.75 if mine else 0.3, edgecolor=style.PAPER, linewidth=1))
        axes.add_patch(Rectangle((0, y), wide, high, fill=False, edgecolor=style.INK, linewidth=0.8))
        axes.text(-0.15, y + high / 2, f"rows {8 * slab}-{8 * slab + 7}", ha="right", va="center", fontsize=8)
    top = slabs * high
    for part in range(4):
        axes.text((part + 0.5) * wide / 4, top + 0.1, f"wgmma {part}\ncolumns {16 * part}-{16 * part + 15}", ha="center", va="bottom", fontsize=8, fontweight="bold" if part == marked else "normal")
    y = top - 0.5 * high
    axes.add_patch(FancyArrowPatch((wide + 0.1, y), (wide + 0.1, y - high), arrowstyle="-|>", mutation_scale=11, color=style.INK, linewidth=1.3, connectionstyle="arc3,rad=-0.6"))
    axes.text(wide + 0.55, y - high / 2, "the stride leads\nfrom 8 rows\nto the next 8", ha="left", va="center", fontsize=8)
    axes.text(wide / 2, -0.2, "64 columns of bfloat16: 8 pieces a row, swizzled within each 8 rows", ha="center", va="top", fontsize=8, color=style.GREY)
    axes.set_xlim(-2.0, wide + 3.2)
    axes.set_ylim(-0.7, top + 1.1)
    axes.axis("off")
    return style.picture(
        figure,
        f"A tile of {rows} rows by 64 columns in shared memory, in slabs of 8 rows, {slabs} of them. Four wgmmas take 16 columns of all rows each; the columns of number {marked} are marked. "
        f"An arrow from the first 8 rows to the next 8 is the stride.",
    )


@style.look()
def specialised_block(stages: int = 2) -> style.Picture:
    """A warp-specialised block: who asks, who copies, who multiplies, and the barriers between them."""
    figure, axes = style.figure(width=7.4, height=2.9)
    middle = 2.0
    _box(axes, 0.0, middle - 0.9, 1.5, 1.8, "global\nmemory\n\na, b", style.MEMORY["global"])
    for s in range(stages):
        _box(axes, 4.0, middle + 0.1 - s * 1.15, 1.9, 0.95, f"stage {s}\na_tile, b_tile", style.MEMORY["shared"])
    _box(axes, 8.4, middle - 0.9, 1.8, 1.8, "warpgroup\n128 threads\n\nsums of c", style.MEMORY["registers"])
    _box(axes, 1.9, 4.2, 1.7, 0.8, "producer\n1 thread", style.PURPLE)
    _flow(axes, (1.6, middle), (3.9, middle), style.INK, "copy engine\n(TMA)", (2.75, middle + 0.12))
    _flow(axes, (6.0, middle), (8.3, middle), style.INK, "tensor cores\n(wgmma)", (7.15, middle + 0.12))
    _flow(axes, (2.75, 4.1), (2.75, middle + 0.95), style.PURPLE, "asks", (2.95, 3.45), ha="left")
    _flow(axes, (4.95, 3.15), (9.3, 3.0), style.BLUE, "full: the bytes have come", (7.1, 4.15), bend=-0.35)
    _flow(axes, (9.3, 1.0), (2.1, 4.1), style.GREY, "empty: fill it again", (5.0, -0.35), path=True)
    axes.set_xlim(-0.45, 10.5)
    axes.set_ylim(-0.6, 5.2)
    axes.axis("off")
    return style.picture(
        figure,
        f"A block with {stages} stages of shared memory in its middle. One producer thread asks the copy engine, which brings tiles of a and b from global memory to a stage "
        f"and reports to its full barrier. The warpgroup waits for it, multiplies on the tensor cores, sums in registers, and reports to the empty barrier, for which the producer waits.",
    )


def _span(axes: Axes, start: float, end: float, y: float, colour: str, text: str) -> None:
    axes.add_patch(Rectangle((start, y - 0.34), end - start, 0.68, facecolor=colour, edgecolor=style.PAPER, alpha=0.85))
    axes.text((start + end) / 2, y, text, ha="center", va="center", fontsize=8, color=style.PAPER, fontweight="bold")


def _phase(axes: Axes, start: float, end: float, y: float, parity: int) -> None:
    axes.add_patch(Rectangle((start, y - 0.34), end - start, 0.68, facecolor="#BBBBBB" if parity else style.LIGHT, edgecolor=style.PAPER))
    axes.text(start + 0.28, y, f"{parity}", ha="center", va="center", fontsize=9)


def _arrow(axes: Axes, x: float, start: float, end: float) -> None:
    axes.add_patch(FancyArrowPatch((x, start), (x, end), arrowstyle="-|>", mutation_scale=8, color=style.INK, linewidth=0.8, shrinkA=0, shrinkB=0, zorder=0.5))


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.1", facecolor=colour, alpha=0.3, edgecolor=colour, linewidth=1.2))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8)


def _flow(axes: Axes, start, end, colour: str, text: str, at, *, ha: str = "center", bend: float = 0.0, path: bool = False) -> None:
    if path:  # below everything, and up on the left
        low, left = -0.1, -0.35
        axes.plot([start[0], start[0], left, left], [start[1], low, low, 4.6], color=colour, linewidth=1.3)
        axes.add_patch(FancyArrowPatch((left, 4.6), (1.85, 4.6), arrowstyle="-|>", mutation_scale=11, color=colour, linewidth=1.3, shrinkA=0))
        axes.text(at[0], low - 0.08, text, ha=ha, va="top", fontsize=8, color=style.INK)
        return
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, linewidth=1.3, connectionstyle=f"arc3,rad={bend}"))
    axes.text(*at, text, ha=ha, va="bottom", fontsize=8, color=style.INK)
