"""Pictures of softmax: what subtracting the maximum saves, the lanes that walk over a row, the running pair, and trips through memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from labkernels.lab import style

OVERFLOW = math.log(float(np.finfo(np.float32).max))  # 88.7: exp of more is inf in float32
UNDERFLOW = math.log(float(np.finfo(np.float32).smallest_subnormal) / 2)  # -104: exp of less is 0


@style.look()
def exponent_range(values: Sequence[float] = (80, 90, 94, 100)) -> style.Picture:
    """Where exp of a float32 can be computed, and a row's values in it: as they come, and with their maximum subtracted."""
    largest = max(values)
    rows = {"x": list(values), "x - max": [value - largest for value in values]}
    low, high = min(UNDERFLOW - 12, *rows["x - max"], *values) - 4, max(OVERFLOW + 12, largest) + 8
    figure, axes = style.figure(height=1.7)
    axes.axvspan(low, UNDERFLOW, color=style.LIGHT)
    axes.axvspan(OVERFLOW, high, color=style.RED, alpha=0.35)
    for (name, exponents), y in zip(rows.items(), (1, 0)):
        axes.plot(exponents, [y] * len(exponents), "o", color=style.BLUE, markersize=7, clip_on=False)
    axes.text((low + UNDERFLOW) / 2, 1.75, "exp is 0", ha="center", fontsize=9)
    axes.text((OVERFLOW + high) / 2, 1.75, "exp is inf", ha="center", fontsize=9)
    axes.text(UNDERFLOW / 2, 1.75, "exp fits into a float32", ha="center", fontsize=9)
    axes.set_yticks([1, 0], list(rows), family="monospace")
    axes.set_xlim(low, high)
    axes.set_ylim(-0.6, 1.6)
    axes.set_xlabel("exponent")
    over = sum(value > OVERFLOW for value in values)
    return style.picture(
        figure,
        f"A line of exponents from {low:.0f} to {high:.0f}. Below {UNDERFLOW:.0f} exp is 0, above {OVERFLOW:.1f} it is infinite. Of the values "
        f"{', '.join(f'{value:g}' for value in values)}, {over} lie in the infinite part. With their maximum subtracted the largest is 0 and none does.",
    )


@style.look()
def row_walk(cols: int = 18, lanes: int = 4) -> style.Picture:
    """One warp owns a row: which lane reads which column, step by step, and that a partial result a lane is left. Drawn with few lanes."""
    figure, axes = style.figure(height=1.9)
    for col in range(cols):
        lane = col % lanes
        _box(axes, col, 1.6, 0.9, 0.8, style.SERIES[lane % len(style.SERIES)], f"{lane}", 0.55)
    for step in range(math.ceil(cols / lanes)):
        first, last = step * lanes, min(cols, (step + 1) * lanes)
        axes.plot([first, last - 0.1], [2.6, 2.6], color=style.INK, linewidth=1)
        axes.text((first + last - 0.1) / 2, 2.72, f"step {step}", ha="center", va="bottom", fontsize=8)
    start = (cols - 1.6 * lanes) / 2
    for lane in range(lanes):
        x = start + 1.6 * lane
        _box(axes, x, 0, 1.3, 0.7, style.SERIES[lane % len(style.SERIES)], f"lane {lane}", 0.55)
    axes.add_patch(FancyArrowPatch((cols / 2, 1.5), (cols / 2, 0.8), arrowstyle="-|>", mutation_scale=12, color=style.INK))
    axes.text(-0.3, 2.0, "row", ha="right", va="center")
    axes.text(start - 0.3, 0.35, "left over", ha="right", va="center")
    _bare(axes, (-1.6, cols + 0.1), (-0.1, 3.2))
    return style.picture(
        figure,
        f"A row of {cols} columns; in each step the {lanes} lanes of a warp read {lanes} neighbouring columns, lane 0 columns 0, {lanes}, "
        f"{2 * lanes} and so on. At the end each lane holds one partial result.",
    )


def running_pairs(values: Sequence[float]) -> list[tuple[float, float, float]]:
    """The running pair after each of `values`, and what the sum before was multiplied by: (maximum, sum, factor)."""
    maximum, total, pairs = -math.inf, 0.0, []
    for value in values:
        largest = max(maximum, value)
        factor = math.exp(maximum - largest) if maximum > -math.inf else 0.0
        total = total * factor + (math.exp(value - largest) if largest > -math.inf else 0.0)
        maximum = largest
        pairs.append((maximum, total, factor))
    return pairs


@style.look()
def online_softmax(values: Sequence[float] = (2, 1, 4, 3)) -> style.Picture:
    """The running pair, one frame a value: above, the values so far and their maximum m; below, the sum s measured against it.

    Where a larger value arrives, the bar of what was summed before shrinks from the dashed outline, by the factor in the title.
    """
    if not values or any(not math.isfinite(value) for value in values):
        raise ValueError("online_softmax: give at least one value, and finite ones; -inf has no bar")
    pairs = running_pairs(values)
    figure, panels = style.figure(2, len(values), width=min(7.2, 1.4 + 1.5 * len(values)), height=4.0, sharey="row", squeeze=False)
    floor, told = min(0.0, min(values)), []
    for number, (value, (maximum, total, factor)) in enumerate(zip(values, pairs)):
        above, below = panels[:, number]
        seen = list(values[: number + 1])
        colours = [style.SERIES[place % len(style.SERIES)] for place in range(len(seen))]
        above.bar(range(len(seen)), seen, color=colours, width=0.7)
        above.axhline(maximum, color=style.INK, linestyle="--", linewidth=1)
        above.text(len(values) - 0.45, maximum, f"m = {maximum:g}", ha="right", va="bottom", fontsize=9)
        above.set_xlim(-0.6, len(values) - 0.4)
        above.set_ylim(floor, 1.25 * max(*values, 0.1))
        above.set_xticks([])
        what = "the first" if number == 0 else "m stays" if factor == 1 else f"before × {factor:.2f}"
        above.set_title(f"x = {value:g}\n{what}", fontsize=10)

        bottom = 0.0
        for place, seen_value in enumerate(seen):
            part = math.exp(seen_value - maximum)
            below.bar([0], [part], bottom=[bottom], color=colours[place], width=0.7)
            bottom += part
        if number and factor < 1:
            below.bar([0], [pairs[number - 1][1]], width=0.82, fill=False, edgecolor=style.INK, linestyle="--", linewidth=1.2)
        below.text(0, max(bottom, pairs[number - 1][1] if number else 0.0) + 0.05, f"s = {total:.2f}", ha="center", va="bottom", fontsize=9)
        below.set_xticks([])
        below.set_xlim(-0.9, 0.9)
        told.append(f"x = {value:g}: {what}; m = {maximum:g}, s = {total:.2f}.")
    panels[1][0].set_ylim(0, 1.2 * max(total for _, total, _ in pairs))
    panels[0][0].set_ylabel("values")
    panels[1][0].set_ylabel("sum against m")
    return style.picture(
        figure, "Frames of a walk over a row: bars of the values so far, and below a stacked bar of the sum of exp(x - m). " + " ".join(told)
    )


@style.look()
def softmax_trips() -> style.Picture:
    """How often the matrix travels between memory and chip: three passes, the running pair, and a row kept in registers."""
    ways: Mapping[str, tuple[str, ...]] = {
        "three passes": ("maximum", "sum", "result", "write"),
        "running pair": ("m and s", "result", "write"),
        "kept in registers": ("everything", "write"),
    }
    figure, panels = style.figure(1, 3, height=2.4, width_ratios=[len(trips) for trips in ways.values()])
    for axes, (name, trips) in zip(panels, ways.items()):
        wide = len(trips)
        _box(axes, 0, 0, wide, 0.7, style.MEMORY["global"], "memory", 0.6)
        _box(axes, 0, 2.5, wide, 0.7, style.MEMORY["registers"], "chip", 0.6)
        for number, trip in enumerate(trips):
            x = number + 0.5
            ends = ((x, 2.45), (x, 0.75)) if trip == "write" else ((x, 0.75), (x, 2.45))
            colour = style.INK if trip in ("write", "everything", "m and s", "maximum") else style.RED
            axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=14, color=colour, linewidth=1.6))
            axes.text(x + 0.08, 1.6, trip, rotation=90, ha="left", va="center", fontsize=8)
        axes.set_title(f"{name}\n{wide} trips", fontsize=10)
        _bare(axes, (-0.1, wide + 0.1), (-0.1, 3.3))
    told = "; ".join(f"{name}: {len(trips) - 1} read{'s' if len(trips) > 2 else ''} ({', '.join(trips[:-1])}) and 1 write" for name, trips in ways.items())
    return style.picture(figure, f"Arrows between memory and chip, each as large as the whole matrix. {told}. Reads after the first are red.")


def _box(axes: Axes, x: float, y: float, width: float, height: float, colour: str, text: str, alpha: float) -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, alpha=alpha, edgecolor="none"))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def _bare(axes: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    axes.axis("off")
