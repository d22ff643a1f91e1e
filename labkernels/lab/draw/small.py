"""Pictures of the small operations: trips through memory, partial sums of a weight's gradient, and the turns of RoPE."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

from labkernels.lab import style

_STEPS = (("x * x", 1, 1), ("mean", 1, 0), ("x * r", 1, 1), ("* weight", 1, 1))  # name, reads, writes: of one row's length each


@style.look()
def norm_trips() -> style.Picture:
    """RMSNorm as PyTorch's separate operations and as one kernel: what each reads and writes of an element."""
    figure, axes = style.figure(height=2.6)
    for y, (name, steps) in enumerate((("one kernel", (("all of it", 1, 1),)), ("four kernels", _STEPS))):
        left = 0.0
        for step, reads, writes in steps:
            for count, colour in ((reads, style.BLUE), (writes, style.ORANGE)):
                if count:
                    axes.add_patch(Rectangle((left, y + 0.1), 4 * count, 0.5, facecolor=colour, alpha=0.75, edgecolor=style.PAPER, linewidth=1.5))
                    left += 4 * count
            axes.text(left - 2 * (reads + writes), y + 0.7, step, ha="center", va="center", fontsize=9)
        axes.text(-0.5, y + 0.35, name, ha="right", va="center")
    axes.legend(handles=[Rectangle((0, 0), 1, 1, color=style.BLUE, alpha=0.75, label="read"), Rectangle((0, 0), 1, 1, color=style.ORANGE, alpha=0.75, label="written")],
                loc="lower right", ncols=2)  # fmt: skip
    axes.set_xlim(-5.5, 29)
    axes.set_ylim(-0.15, 2.0)
    axes.set_yticks([])
    axes.set_xticks(range(0, 29, 4))
    axes.set_xlabel("bytes an element, float32")
    axes.spines["left"].set_visible(False)
    return style.picture(
        figure,
        "Two rows of bars along an axis of bytes an element. Four kernels, x times x, mean, x times r, times weight, read 4 bytes each, and three of them "
        "write 4: 28 bytes. One kernel reads 4 and writes 4.",
    )


@style.look()
def partial_sums(rows: int = 12, blocks: int = 3) -> style.Picture:
    """A weight's gradient is a sum over all rows: each block adds up its own, and a second kernel adds the blocks' sums in order."""
    if not 1 <= blocks <= min(rows, len(style.SERIES)):
        raise ValueError(f"partial_sums: blocks is {blocks}; it must be from 1 to {min(rows, len(style.SERIES))}, and no more than rows")
    figure, axes = style.figure(height=3.0)
    height = 3.0 / rows
    for row in range(rows):
        axes.add_patch(Rectangle((0, 3 - (row + 1) * height), 3.2, 0.85 * height, facecolor=style.SERIES[row % blocks], alpha=0.6))
    for block in range(blocks):
        y = 2.3 - block * 0.75
        axes.add_patch(Rectangle((4.6, y), 3.2, 0.3, facecolor=style.SERIES[block], alpha=0.85))
        axes.text(6.2, y + 0.42, f"block {block}", ha="center", fontsize=9, va="center")
        axes.add_patch(FancyArrowPatch((3.3, 1.5), (4.5, y + 0.15), arrowstyle="-|>", mutation_scale=11, color=style.SERIES[block], shrinkA=0, shrinkB=0))
        axes.add_patch(FancyArrowPatch((7.9, y + 0.15), (8.9, 1.55), arrowstyle="-|>", mutation_scale=11, color=style.INK, shrinkA=0, shrinkB=0))
    axes.add_patch(Rectangle((9.0, 1.4), 3.2, 0.3, facecolor=style.GREY, alpha=0.6))
    for x, text in ((1.6, "dy times x, scaled:\na row each"), (6.2, "first kernel:\na row of sums a block"), (10.6, "second kernel:\nin order")):
        axes.text(x, 3.5, text, ha="center", va="center", fontsize=9)
    axes.text(10.6, 1.15, "dweight", ha="center", va="center")
    axes.set_xlim(-0.1, 12.4)
    axes.set_ylim(0, 3.9)
    axes.axis("off")
    return style.picture(
        figure,
        f"{rows} rows in the colours of {blocks} blocks, which take turns. Each block adds up its rows to one row of partial sums; a second kernel adds the {blocks} "
        "partial rows, in order, to one: the gradient of the weight.",
    )


@style.look()
def rope_turns(positions: Sequence[int] = (0, 1, 2, 3), frequencies: Sequence[float] = (1.0, 0.25)) -> style.Picture:
    """Pairs of a query at several positions: each is turned by position times its frequency."""
    figure, panels = style.figure(len(frequencies), len(positions), height=1.75 * len(frequencies), squeeze=False)
    for row, frequency in zip(panels, frequencies):
        for axes, position in zip(row, positions):
            angle = 0.5 + position * frequency
            axes.add_patch(Circle((0, 0), 1, fill=False, color=style.LIGHT))
            axes.add_patch(FancyArrowPatch((0, 0), (math.cos(0.5), math.sin(0.5)), arrowstyle="-|>", mutation_scale=9, color=style.GREY, shrinkA=0, shrinkB=0))
            axes.add_patch(FancyArrowPatch((0, 0), (math.cos(angle), math.sin(angle)), arrowstyle="-|>", mutation_scale=13, color=style.BLUE, linewidth=2, shrinkA=0, shrinkB=0))
            axes.set_title(f"position {position}: turn {position * frequency:g}", fontsize=9)
            axes.set_xlim(-1.15, 1.15)
            axes.set_ylim(-1.15, 1.15)
            axes.set_aspect("equal")
            axes.axis("off")
        row[0].text(-1.5, 0, f"frequency {frequency:g}", rotation=90, ha="center", va="center", fontsize=9)
    turns = "; ".join(f"frequency {f:g}: {', '.join(f'{p * f:g}' for p in positions)}" for f in frequencies)
    return style.picture(figure, f"Arrows in circles, one for each position {', '.join(map(str, positions))}: a pair of numbers, turned by an angle in radians. {turns}.")
