"""Pictures of what a warp reads: lanes, addresses, and the sectors of 32 bytes that memory delivers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from labkernels.lab import style

LANES, SECTOR_BYTES, FLOAT_BYTES = 32, 32, 4


def touched_sectors(addresses: np.ndarray, width: int = FLOAT_BYTES) -> np.ndarray:
    """The numbers of the 32-byte sectors that hold any of the `width` bytes at each address."""
    return np.unique((np.asarray(addresses)[:, None] + np.arange(width)) // SECTOR_BYTES)


@style.look()
def warp_reads(strides: Sequence[int] = (1, 2, 8)) -> style.Picture:
    """A warp's 32 lanes above memory, one panel for each stride in floats: where each lane reads, and which sectors move."""
    figure, panels = style.figure(len(strides), 1, height=1.35 * len(strides), squeeze=False)
    end = max(strides) * LANES * FLOAT_BYTES
    told = []
    for axes, stride in zip(panels[:, 0], strides):
        addresses = FLOAT_BYTES * stride * np.arange(LANES)
        sectors = touched_sectors(addresses)
        for sector in range(end // SECTOR_BYTES):
            moved = sector in sectors
            axes.add_patch(
                Rectangle((sector * SECTOR_BYTES, 0), SECTOR_BYTES, 1, facecolor=style.MEMORY["global"] if moved else style.LIGHT,
                          alpha=0.45 if moved else 0.6, edgecolor="none")
            )
        axes.vlines(np.arange(0, end + 1, SECTOR_BYTES), 0, 1, color=style.PAPER, linewidth=0.9, zorder=3)
        spread = end / LANES
        for lane, address in enumerate(addresses):
            top = (lane + 0.5) * spread
            axes.plot([top, address + FLOAT_BYTES / 2], [2.35, 1.0], color=style.BLUE, linewidth=0.5)
            axes.plot(top, 2.45, "o", color=style.BLUE, markersize=4)
            axes.add_patch(Rectangle((address, 0), FLOAT_BYTES, 1, facecolor=style.BLUE, edgecolor="none"))
        used = LANES * FLOAT_BYTES / (len(sectors) * SECTOR_BYTES)
        axes.set_title(f"stride {stride}: {len(sectors)} sectors, {100 * used:.3g}% of their bytes are used", fontsize=10)
        _bare(axes, (-0.005 * end, 1.005 * end), (-0.1, 2.75))
        told.append(f"Stride {stride}: {len(sectors)} sectors, {100 * used:.3g}% used.")
    return style.picture(
        figure,
        f"The {LANES} lanes of a warp above a strip of memory cut into sectors of {SECTOR_BYTES} bytes, once for each stride. A line leads from "
        f"each lane to the 4 bytes it reads; the sectors that move are coloured. {' '.join(told)}",
    )


@style.look()
def matrix_in_memory(rows: int = 4, cols: int = 8, row: int = 1, col: int = 2) -> style.Picture:
    """A matrix, and the same elements as they lie in memory: row after row. A row is one piece, a column is scattered."""
    figure, axes = style.figure(height=2.9)
    total = rows * cols
    left = (total - 2 * cols) / 2

    def colour(r: int, c: int) -> tuple[str, float]:
        if r == row and c == col:
            return style.PURPLE, 0.9
        return (style.GREEN, 0.7) if r == row else (style.BLUE, 0.7) if c == col else (style.LIGHT, 1.0)

    for r in range(rows):
        for c in range(cols):
            face, alpha = colour(r, c)
            axes.add_patch(Rectangle((left + 2 * c, 4.2 + 1.4 * (rows - 1 - r)), 2, 1.4, facecolor=face, alpha=alpha, edgecolor=style.PAPER, linewidth=1.5))
            axes.text(left + 2 * c + 1, 4.9 + 1.4 * (rows - 1 - r), f"{r * cols + c}", ha="center", va="center", fontsize=9)
            axes.add_patch(Rectangle((r * cols + c, 0), 1, 1.4, facecolor=face, alpha=alpha, edgecolor=style.PAPER, linewidth=1.0))
            axes.text(r * cols + c + 0.5, 0.7, f"{r * cols + c}", ha="center", va="center", fontsize=7)
        axes.text(left - 0.4, 4.9 + 1.4 * (rows - 1 - r), f"row {r}", ha="right", va="center", fontsize=9, color=style.GREEN if r == row else style.GREY)
        axes.plot([r * cols + 0.1, (r + 1) * cols - 0.1], [-0.3] * 2, color=style.GREEN if r == row else style.GREY, linewidth=1.2)
        axes.text(r * cols + cols / 2, -0.5, f"row {r}", ha="center", va="top", fontsize=8, color=style.GREEN if r == row else style.GREY)
    axes.text(left + 2 * col + 1, 4.4 + 1.4 * rows, f"col {col}", ha="center", va="bottom", fontsize=9, color=style.BLUE)
    axes.text(0, 1.7, "in memory", ha="left", va="bottom", fontweight="bold")
    _bare(axes, (-0.3, total + 0.3), (-1.6, 5.4 + 1.4 * rows))
    return style.picture(
        figure,
        f"A matrix of {rows} rows and {cols} columns, its elements numbered row by row, and below it the same numbers in one line of memory. "
        f"Row {row} is one piece, elements {row * cols} to {row * cols + cols - 1}. Column {col} is every {cols}th element: "
        f"{', '.join(str(r * cols + col) for r in range(rows))}.",
    )


@style.look()
def transpose_requests(rows: int = 10, cols: int = 12, lanes: int = 8) -> style.Picture:
    """One warp's part of a transpose, drawn with a few lanes: a piece of a row is read, a piece of a column is written."""
    figure, (source, target) = style.figure(1, 2, width=5.6, height=2.9, width_ratios=[cols, rows])
    row, first = 3, 2
    for axes, shape, title in ((source, (rows, cols), "x: read along a row"), (target, (cols, rows), "out: written down a column")):
        for r in range(shape[0]):
            for c in range(shape[1]):
                lane = (c - first if r == row else -1) if axes is source else (r - first if c == row else -1)
                mine = 0 <= lane < lanes
                axes.add_patch(Rectangle((c, -r), 1, -1, facecolor=style.BLUE if mine else style.LIGHT, edgecolor=style.PAPER, linewidth=1.2))
                if mine:
                    axes.text(c + 0.5, -r - 0.5, f"{lane}", ha="center", va="center", fontsize=8, color=style.PAPER)
        axes.set_title(title, fontsize=10)
        axes.text(0, -shape[0] - 0.2, f"{shape[0]} rows, {shape[1]} columns", va="top", fontsize=9, color=style.GREY)
        _bare(axes, (-0.1, shape[1] + 0.1), (-max(rows, cols) - 1.0, 0.1))
        axes.set_aspect("equal", anchor="NW")
    return style.picture(
        figure,
        f"Two matrices. In x, {rows} by {cols}, the lanes 0 to {lanes - 1} of a warp read neighbouring elements of row {row}. In out, {cols} by "
        f"{rows}, the same lanes write elements below each other in column {row}, a whole row of memory apart.",
    )


@style.look()
def vector_loads(lanes: int = 8) -> style.Picture:
    """The same elements read with one float or with one float4 a lane, drawn with a few lanes: four requests, or one."""
    figure, panels = style.figure(2, 1, height=3.0)
    wide = 4 * lanes
    for axes, floats in zip(panels, (1, 4)):
        for element in range(wide):
            axes.add_patch(Rectangle((element, 0), 1, 1, facecolor=style.SERIES[element // lanes if floats == 1 else 0], alpha=0.45, edgecolor=style.PAPER))
        for lane in range(lanes):
            top = (lane + 0.5) * floats
            axes.plot(top, 2.6, "o", color=style.BLUE, markersize=6)
            axes.text(top, 3.0, f"{lane}", ha="center", va="bottom", fontsize=8)
            axes.add_patch(FancyArrowPatch((top, 2.5), (top, 1.05), arrowstyle="-|>", mutation_scale=9, color=style.BLUE))
            if floats == 4:
                axes.add_patch(Rectangle((4 * lane, 0), 4, 1, fill=False, edgecolor=style.BLUE, linewidth=1.6))
        requests = 4 // floats
        if floats == 1:
            for step in range(1, 4):
                axes.text((step + 0.5) * lanes, 1.4, f"request {step + 1}", ha="center", va="bottom", fontsize=9, color=style.SERIES[step])
        axes.set_title(f"{'float' if floats == 1 else 'float4'}: {4 * floats} bytes a lane, {requests} request{'s' if requests > 1 else ''}", fontsize=10)
        _bare(axes, (-0.2, wide + 0.2), (-0.2, 4.0))
    return style.picture(
        figure,
        f"{wide} floats in memory and {lanes} lanes above them, twice. With float each lane reads 4 bytes and the warp needs 4 requests, one after "
        f"the other. With float4 each lane reads 16 bytes and one request is enough.",
    )


def _bare(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    axes.axis("off")
