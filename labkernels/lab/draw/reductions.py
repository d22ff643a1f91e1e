"""Pictures of adding up: threads that meet at one total, the tree in shared memory, lanes that exchange, and what rounding does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyArrowPatch, Rectangle

from labkernels.lab import style

WARP = 32


@style.look()
def atomic_additions(values: Sequence[float] = (3, 1, 4)) -> style.Picture:
    """Threads that add to one total, each on its own clock: read, add, write, and what is lost; and atomic additions, one after the other."""
    figure, panels = style.figure(2, 1, height=1.4 + 0.62 * len(values), sharex=True)
    width, late = 1.0, 0.35
    for thread, value in enumerate(values):
        y, start = -thread, late * thread
        _step(panels[0], start, y, width, "read 0", style.SKY)
        _step(panels[0], start + width, y, width, f"add {value:g}", style.LIGHT)
        _step(panels[0], start + 2 * width, y, width, f"write {value:g}", style.RED)
    before, turn = 0.0, 2.0
    for thread, value in enumerate(values):
        y, start = -thread, turn * thread
        if thread > 0:
            panels[1].plot([0, start], [y, y], color=style.GREY, linestyle=":", linewidth=1.2)
        _step(panels[1], start, y, turn, f"{before:g} + {value:g} = {before + value:g}", style.GREEN)
        before += value
    ends = (3 * width + late * (len(values) - 1), turn * len(values))
    for axes, end, result in zip(panels, ends, (values[-1], before)):
        axes.text(end + 0.25, -(len(values) - 1) / 2, f"total: {result:g}", va="center", fontweight="bold")
        axes.set_yticks([-thread for thread in range(len(values))], [f"thread {thread}" for thread in range(len(values))])
        axes.set_ylim(-len(values) + 0.4, 0.6)
        axes.set_xlim(-0.1, max(ends) + 1.6)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
    panels[0].set_title("*total += x[i]", fontsize=10, family="monospace")
    panels[1].set_title("atomicAdd(total, x[i])", fontsize=10, family="monospace")
    panels[1].set_xlabel("time →", loc="left")
    return style.picture(
        figure,
        f"Two timelines of {len(values)} threads that add to a total of 0. Plain: all read 0 before anyone has written, each writes its own "
        f"result over that of the others, and the total is {values[-1]:g}. Atomic: each addition waits for the one before it, and the total "
        f"is {before:g}.",
    )


def tree_steps(values: Sequence[float]) -> list[tuple[int, list[float]]]:
    """The steps of a tree over `values`, a power of two of them: the distance, and the array after the step."""
    count = len(values)
    if count < 2 or count & (count - 1):
        raise ValueError(f"a tree that halves needs 2, 4, 8, ... values, and here are {count}")
    steps, array, distance = [], list(values), count // 2
    while distance > 0:
        array = [array[i] + array[i + distance] if i < distance else array[i] for i in range(count)]
        steps.append((distance, array))
        distance //= 2
    return steps


@style.look()
def reduction_tree(values: Sequence[float] = (3, 1, 4, 1, 5, 9, 2, 6)) -> style.Picture:
    """A tree in shared memory: half of the threads add the other half's values, then a quarter, until one value is left."""
    steps = tree_steps(values)
    figure, axes = style.figure(height=0.9 + 0.78 * len(steps))
    gap, tall = 1.75, 0.8
    live = len(values)
    for level, (distance, array) in enumerate([(live, list(values)), *steps]):
        y = -level * gap
        for i, value in enumerate(array):
            added = level > 0 and i < distance
            colour = style.SKY if i < live and (added or level == 0) else style.LIGHT
            _cell(axes, i, y, tall, f"{value:g}", colour, style.INK if i < distance else style.GREY)
        if level > 0:
            for i in range(distance):
                _arrow(axes, (i + distance + 0.45, y + gap), (i + 0.62, y + tall), style.BLUE)
                _arrow(axes, (i + 0.45, y + gap), (i + 0.45, y + tall), style.BLUE)
            axes.text(-0.3, y + tall / 2, f"distance {distance}", ha="right", va="center")
            axes.text(len(values) + 0.2, y + tall / 2, f"{distance} thread{'s' if distance > 1 else ''} add{'' if distance > 1 else 's'}", va="center")
            middle = y + tall + (gap - tall) / 2
            axes.plot([-2.1, len(values) + 2.1], [middle] * 2, color=style.INK, linestyle="--", linewidth=0.8, zorder=0)
            axes.text(len(values) + 2.15, middle, "barrier", va="center", fontsize=9)
        live = distance
    axes.text(-0.3, tall / 2, "shared memory", ha="right", va="center")
    _bare(axes, (-2.3, len(values) + 3.4), (-gap * len(steps) - 0.2, tall + 0.2))
    told = "; ".join(f"distance {distance}: {', '.join(f'{value:g}' for value in array[:distance])}" for distance, array in steps)
    return style.picture(
        figure,
        f"An array of {len(values)} values in shared memory and {len(steps)} steps. In each, a thread adds the value that lies the distance to "
        f"its right, and then all wait at a barrier. {told}. Element 0 ends as the sum.",
    )


def working_threads(threads: int, halves: bool) -> np.ndarray:
    """Which threads add in each step of a tree, (steps, threads): distances threads/2 ... 1 if `halves`, else 1 ... threads/2."""
    distances = [threads >> (step + 1) for step in range(threads.bit_length() - 1)]
    thread = np.arange(threads)
    if halves:
        return np.stack([thread < distance for distance in distances])
    return np.stack([thread % (2 * distance) == 0 for distance in reversed(distances)])


def busy_warps(working: np.ndarray) -> np.ndarray:
    """How many warps have at least one working thread, in each step of `working_threads`."""
    return working.reshape(len(working), -1, WARP).any(axis=2).sum(axis=1)


@style.look()
def tree_warps(threads: int = 256) -> style.Picture:
    """Which threads and which warps work in each step of a tree: farthest partner first, and nearest first."""
    figure, panels = style.figure(2, 1, height=3.9, sharex=True)
    told = []
    for axes, halves in zip(panels, (True, False)):
        working = working_threads(threads, halves)
        steps, warps = len(working), busy_warps(working)
        busy = working.reshape(steps, -1, WARP).any(axis=2).repeat(WARP, axis=1)
        axes.imshow(np.where(working, 2, busy), cmap=ListedColormap([style.LIGHT, style.YELLOW, style.BLUE]), vmin=0, vmax=2, aspect="auto", interpolation="nearest")
        for edge in range(0, threads + 1, WARP):
            axes.axvline(edge - 0.5, color=style.PAPER, linewidth=1.5)
        for edge in range(steps):
            axes.axhline(edge - 0.5, color=style.PAPER, linewidth=1.5)
        distances = [int(row.sum()) for row in working]
        distances = distances if halves else distances[::-1]
        axes.set_yticks(range(steps), distances, fontsize=8)
        axes.set_ylabel("distance")
        for step, count in enumerate(warps):
            axes.text(threads + 2, step, f"{count}", va="center", fontsize=8)
        axes.set_title(f"distances {distances[0]}, {distances[1]}, ... {distances[-1]}: a warp is busy {warps.sum()} times", fontsize=10)
        told.append(f"With distances {distances[0]} to {distances[-1]} the busy warps of the steps are {', '.join(map(str, warps))}, {warps.sum()} in all.")
    panels[0].text(threads + 2, -1.3, "busy\nwarps", fontsize=8, va="center")
    panels[1].set_xlabel("thread")
    panels[1].set_xticks(range(0, threads + 1, WARP))
    for colour, text in ((style.BLUE, "thread adds"), (style.YELLOW, "waits in a busy warp"), (style.LIGHT, "warp is idle")):
        panels[0].plot([], [], "s", color=colour, label=text, markersize=8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return style.picture(figure, f"Threads by steps for a tree over {threads} values, in two orders. {' '.join(told)}")


@style.look()
def lane_exchange(values: Sequence[float] = (3, 1, 4, 1, 5, 9, 2, 6)) -> style.Picture:
    """Lanes that exchange their registers: each adds its partner's value, and after the last step each has the sum. Drawn with few lanes."""
    count = len(values)
    if count < 2 or count & (count - 1):
        raise ValueError(f"lanes exchange in pairs of pairs: 2, 4, 8, ... values, and here are {count}")
    figure, axes = style.figure(height=0.6 + 0.85 * (count.bit_length() - 1))
    gap, tall, array, distance, level = 1.9, 0.8, list(values), count // 2, 0
    for lane in range(count):
        axes.text(lane + 0.45, tall + 0.15, f"lane {lane}", ha="center", va="bottom", fontsize=8)
        _cell(axes, lane, 0, tall, f"{values[lane]:g}", style.MEMORY["registers"], style.INK)
    while distance > 0:
        level += 1
        y = -level * gap
        for lane in range(count):
            partner = lane ^ distance
            _arrow(axes, (partner + 0.45, y + gap), (lane + (0.62 if partner > lane else 0.28), y + tall), style.SERIES[(min(lane, partner)) % len(style.SERIES)])
        array = [array[lane] + array[lane ^ distance] for lane in range(count)]
        for lane in range(count):
            _cell(axes, lane, y, tall, f"{array[lane]:g}", style.MEMORY["registers"], style.INK)
        axes.text(-0.3, y + tall / 2, f"distance {distance}", ha="right", va="center")
        distance //= 2
    axes.text(-0.3, tall / 2, "registers", ha="right", va="center")
    _bare(axes, (-1.9, count + 0.1), (-gap * level - 0.2, tall + 0.6))
    return style.picture(
        figure,
        f"{count} lanes with one register each, and {level} steps. In each step two lanes at a distance of {', '.join(str(count >> (i + 1)) for i in range(level))} "
        f"exchange values, and both add. At the end every lane holds {array[0]:g}.",
    )


def rounding_error(x: np.ndarray) -> tuple[float, float]:
    """How far two float32 sums of x are from the sum in float64, relative to it: added one by one, and in a tree."""
    exact = x.astype(np.float64).sum()
    one_by_one = np.add.accumulate(x, dtype=np.float32)[-1]
    tree = np.pad(x, (0, (1 << (len(x) - 1).bit_length()) - len(x)))
    while len(tree) > 1:
        half = len(tree) // 2
        tree = tree[:half] + tree[half:]
    return tuple(abs(float(result) - exact) / abs(exact) for result in (one_by_one, tree[0]))


@style.look()
def rounding_errors(powers: Sequence[int] = tuple(range(6, 21, 2)), trials: int = 9, seed: int = 0) -> style.Picture:
    """The error of a float32 sum of random numbers from 0 to 1 against their count: one by one, and in a tree. Medians of `trials`."""
    generator = np.random.default_rng(seed)
    counts = [2**power for power in powers]
    errors = [np.median([rounding_error(generator.random(count, dtype=np.float32)) for _ in range(trials)], axis=0) for count in counts]
    one_by_one, tree = np.maximum(np.array(errors), 1e-10).T
    figure, axes = style.figure(height=3.0)
    axes.plot(counts, one_by_one, "o-", color=style.ORANGE, label="one by one")
    axes.plot(counts, tree, "o-", color=style.BLUE, label="in a tree")
    axes.axhline(2.0**-24, color=style.LIMIT, linewidth=1.2, linestyle=(0, (4, 2)), label="one rounding")
    style.ratio_axis(axes, "x", counts, lambda n: f"{n / 2**20:g}Mi" if n >= 2**20 else f"{n / 1024:g}Ki" if n >= 1024 else f"{n:g}")
    axes.set_yscale("log")
    axes.grid(True, axis="y")
    axes.set_xlabel("numbers added up")
    axes.set_ylabel("relative error")
    axes.legend(loc="upper left")
    return style.picture(
        figure,
        f"Relative error of float32 sums on ratio axes. One by one it grows from {one_by_one[0]:.0e} for {counts[0]} numbers to "
        f"{one_by_one[-1]:.0e} for {counts[-1]}; in a tree it stays between {tree.min():.0e} and {tree.max():.0e}. One rounding is 6e-08.",
    )


def _step(axes: Axes, x: float, y: float, width: float, text: str, colour: str) -> None:
    axes.add_patch(Rectangle((x, y - 0.36), width, 0.72, facecolor=colour, alpha=0.75, edgecolor=style.PAPER, linewidth=1.5))
    axes.text(x + width / 2, y, text, ha="center", va="center", fontsize=9)


def _cell(axes: Axes, x: float, y: float, height: float, text: str, colour: str, ink: str) -> None:
    axes.add_patch(Rectangle((x, y), 0.9, height, facecolor=colour, alpha=0.6, edgecolor="none"))
    axes.text(x + 0.45, y + height / 2, text, ha="center", va="center", color=ink)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=1.2, shrinkA=0, shrinkB=1))


def _bare(axes: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    axes.axis("off")
