"""Pictures of threads: where code runs, which thread takes which element, and what happens at the ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from labkernels.lab import style

MOST_CELLS = 48  # more threads than this are drawn as blocks, without a cell for each


@style.look()
def where_code_runs() -> style.Picture:
    """One source, two machines: where the tensors live decides."""
    figure, axes = style.figure(height=2.1)
    _box(axes, 0, 1.0, 2.0, 1.0, "your kernel\nin CUDA C++", style.INK)
    rows = [
        (2.0, 'tensors on "cuda"', "NVIDIA's\ncompiler", "GPU", "runs, and can be timed", style.GREEN),
        (0.0, 'tensors on "cpu"', "g++", "emulator", "runs, and the sanitizer\ncan watch", style.BLUE),
    ]
    for y, condition, compiler, machine, remark, colour in rows:
        middle = y + 0.5
        axes.plot([2.0, 2.4, 2.4], [1.5, 1.5, middle], color=colour, linewidth=1.5)
        axes.add_patch(FancyArrowPatch((2.4, middle), (4.75, middle), arrowstyle="-|>", mutation_scale=12, color=colour, linewidth=1.5, shrinkA=0))
        axes.text(2.55, middle + 0.12, condition, ha="left", va="bottom", fontsize=9, color=colour)
        _box(axes, 4.8, y, 1.5, 1.0, compiler, colour)
        axes.add_patch(FancyArrowPatch((6.25, middle), (7.0, middle), arrowstyle="-|>", mutation_scale=12, color=colour, linewidth=1.5))
        _box(axes, 7.0, y, 1.5, 1.0, machine, colour)
        axes.text(8.7, middle, remark, ha="left", va="center", fontsize=9)
    axes.plot([2.0, 2.4], [1.5, 1.5], color=style.INK, linewidth=1.5)
    _bare(axes, (-0.1, 11.6), (-0.1, 3.1), equal=False)
    return style.picture(
        figure,
        "One kernel in CUDA C++, two paths. With tensors on cuda, NVIDIA's compiler makes code for the GPU, where it runs and can be timed. "
        "With tensors on cpu, g++ makes code for the emulator, where it runs and the sanitizer can watch it.",
    )


@style.look()
def one_thread_each(n: int = 8) -> style.Picture:
    """A thread for each element: thread i reads x[i] and writes y[i]."""
    figure, axes = style.figure(height=2.2)
    for i in range(n):
        colour = style.SERIES[i % len(style.SERIES)]
        _cell(axes, i, 3.2, f"{i}", style.MEMORY["global"])
        _cell(axes, i, 0.0, f"{i * i}", style.MEMORY["global"])
        axes.add_patch(FancyBboxPatch((i + 0.12, 1.75), 0.76, 0.7, boxstyle="round,pad=0,rounding_size=0.3", facecolor=colour, edgecolor="none"))
        axes.text(i + 0.5, 2.1, f"{i}", ha="center", va="center", color=style.PAPER, fontweight="bold")
        for start, end in ((3.2, 2.45), (1.75, 1.0)):
            axes.add_patch(FancyArrowPatch((i + 0.5, start), (i + 0.5, end), arrowstyle="-|>", mutation_scale=10, color=colour))
    for y, name in ((3.7, "x"), (2.1, "thread i"), (0.5, "y = x * x")):
        axes.text(-0.3, y, name, ha="right", va="center", fontweight="bold")
    _bare(axes, (-2.6, n + 0.2), (-0.2, 4.4))
    return style.picture(
        figure, f"{n} threads between two arrays of {n} cells: thread i reads x[i], which is i, and writes its square into y[i]."
    )


@style.look()
def smoothing_windows(n: int = 9) -> style.Picture:
    """The three elements that the first, a middle and the last thread of a smoothing kernel read."""
    figure, axes = style.figure(height=1.7)
    for i in range(n):
        _cell(axes, i, 0.0, f"x[{i}]", style.MEMORY["global"])
    for i, name in ((-1, "x[-1]"), (n, f"x[{n}]")):
        axes.add_patch(Rectangle((i, 0), 1, 1, facecolor=style.PAPER, edgecolor=style.WRONG, linestyle="--", linewidth=1.4))
        axes.text(i + 0.5, 0.5, name, ha="center", va="center", fontsize=9, color=style.WRONG)
    for thread in (0, n // 2, n - 1):
        inside = 0 < thread < n - 1
        colour = style.RIGHT if inside else style.WRONG
        axes.text(thread + 0.5, 2.2, f"thread {thread}", ha="center", va="bottom", color=colour, fontweight="bold")
        for element in (thread - 1, thread, thread + 1):
            missing = not 0 <= element < n
            axes.add_patch(
                FancyArrowPatch(
                    (thread + 0.5, 2.15), (element + 0.5, 1.05), arrowstyle="<|-", mutation_scale=10,
                    color=style.WRONG if missing else style.INK, linestyle="--" if missing else "-",
                )
            )
    axes.text(-1.2, 0.5, "whose?", ha="right", va="center", fontsize=9, color=style.WRONG)
    axes.text(n + 1.2, 0.5, "whose?", ha="left", va="center", fontsize=9, color=style.WRONG)
    _bare(axes, (-2.6, n + 2.6), (-0.2, 2.8))
    return style.picture(
        figure,
        f"An array of {n} cells and three threads, each reading its own cell and both neighbours. Thread {n // 2} finds all three. Thread 0 "
        f"reads x[-1] and thread {n - 1} reads x[{n}]: both lie outside of the array, and nobody knows whose memory they are.",
    )


@style.look()
def curves(vectors: Mapping[str, torch.Tensor]) -> style.Picture:
    """What a kernel does to a vector: each of `vectors` as a line over its elements, the first one in grey."""
    figure, axes = style.figure(height=2.4)
    for number, (name, vector) in enumerate(vectors.items()):
        axes.plot(vector.detach().float().cpu(), label=name, color=style.GREY if number == 0 else style.SERIES[number - 1], linewidth=1.0 if number == 0 else 2.0)
    axes.set_xlabel("element")
    figure.legend(loc="outside right upper")

    def roughness(vector: torch.Tensor) -> float:
        return float(vector.detach().float().diff().abs().mean())

    told = ", ".join(f"{name} {roughness(vector):.2g}" for name, vector in vectors.items())
    return style.picture(figure, f"{len(vectors)} lines over the elements of a vector. The mean step from one element to the next: {told}.")


@style.look()
def grid_of_threads(blocks: int = 3, threads: int = 4, n: int = 10) -> style.Picture:
    """Blocks of threads over the elements of an array of n: which thread takes which element, and which threads stick out."""
    total = blocks * threads
    if total > MOST_CELLS:
        return _grid_of_blocks(blocks, threads, n)
    figure, axes = style.figure(height=1.9)
    for block in range(blocks):
        colour, left = style.SERIES[block % len(style.SERIES)], block * threads
        axes.add_patch(Rectangle((left + 0.04, 1.55), threads - 0.08, 1.9, facecolor=colour, alpha=0.15, edgecolor="none"))
        axes.text(left + threads / 2, 2.95, f"block {block}", ha="center", va="center", color=colour, fontweight="bold")
        for thread in range(threads):
            i = left + thread
            shape = FancyBboxPatch(
                (i + 0.14, 1.7), 0.72, 0.7, boxstyle="round,pad=0,rounding_size=0.3", facecolor=colour if i < n else style.PAPER,
                edgecolor=colour if i < n else style.WRONG, linestyle="-" if i < n else "--",
            )
            axes.add_patch(shape)
            axes.text(i + 0.5, 2.05, f"{thread}", ha="center", va="center", color=style.PAPER if i < n else style.WRONG, fontweight="bold")
            if i < n:
                axes.add_patch(FancyArrowPatch((i + 0.5, 1.65), (i + 0.5, 1.02), arrowstyle="-|>", mutation_scale=9, color=colour))
    for i in range(n):
        _cell(axes, i, 0.0, f"{i}", style.MEMORY["global"])
    for y, name in ((2.05, "threadIdx.x"), (0.5, "element i")):
        axes.text(-0.3, y, name, ha="right", va="center", fontweight="bold")
    if n < total:
        axes.text((n + total) / 2, 0.5, "no element", ha="center", va="center", fontsize=9, color=style.WRONG)
    _bare(axes, (-3.4, total + 0.2), (-0.2, 3.6))
    return style.picture(figure, _grid_alt(blocks, threads, n))


def _grid_of_blocks(blocks: int, threads: int, n: int) -> style.Picture:
    total = blocks * threads
    figure, axes = style.figure(height=1.6)
    for block in range(blocks):
        colour, first = style.SERIES[block % len(style.SERIES)], block * threads
        end = min(max(n, first), first + threads)
        axes.add_patch(Rectangle((first, 0), end - first, 1, facecolor=colour, alpha=0.8, edgecolor=style.PAPER, linewidth=2))
        axes.text(first + threads / 2, 1.15, f"block {block}", ha="center", va="bottom", color=colour, fontweight="bold")
        axes.text(first, -0.12, f"{first}", ha="left", va="top", fontsize=8, color=style.GREY)
    if n < total:
        axes.add_patch(Rectangle((n, 0), total - n, 1, facecolor=style.PAPER, edgecolor=style.WRONG, linestyle="--", linewidth=1.4))
        axes.text(total, -0.65, f"threads {n} to {total - 1} have no element", ha="right", va="top", fontsize=9, color=style.WRONG)
    _bare(axes, (-0.01 * total, 1.01 * total), (-1.2, 1.7), equal=False)
    return style.picture(figure, _grid_alt(blocks, threads, n))


def _grid_alt(blocks: int, threads: int, n: int) -> str:
    total = blocks * threads
    left_over = f"The last {total - n} of the {total} threads have no element." if n < total else "Every thread has an element."
    if n > total:
        left_over = f"Elements {total} to {n - 1} have no thread."
    return f"{blocks} blocks of {threads} threads side by side over an array of {n} elements, thread 0 of block 1 over element {threads}. {left_over}"


@style.look()
def grid_stride(n: int = 22, blocks: int = 2, threads: int = 4) -> style.Picture:
    """A grid smaller than the data: each thread starts at its own number and goes on in steps of the whole grid."""
    total = blocks * threads
    figure, axes = style.figure(height=1.75)
    followed = 1
    for i in range(n):
        block = i % total // threads
        axes.add_patch(Rectangle((i, 0), 1, 1, facecolor=style.SERIES[block], alpha=0.85 if i % total == followed else 0.3, edgecolor=style.PAPER))
        axes.text(i + 0.5, 0.5, f"{i}", ha="center", va="center", fontsize=9, color=style.PAPER if i % total == followed else style.INK)
    for step, first in enumerate(range(0, n, total)):
        last = min(first + total, n)
        axes.plot([first + 0.1, last - 0.1], [-1.0] * 2, color=style.GREY, linewidth=1.2)
        axes.text((first + last) / 2, -1.1, f"step {step}", ha="center", va="top", fontsize=9, color=style.GREY)
    for start in range(followed, n - total, total):
        axes.add_patch(
            FancyArrowPatch((start + 0.5, 1.05), (start + total + 0.5, 1.05), connectionstyle="arc3,rad=-0.22", arrowstyle="-|>", mutation_scale=11, color=style.INK)
        )
        axes.text(start + total / 2 + 0.5, 2.3, f"+ {total}", ha="center", va="bottom")
    for first in range(0, n, threads):
        last, block = min(first + threads, n), first % total // threads
        axes.text((first + last) / 2, -0.1, f"block {block}", ha="center", va="top", color=style.SERIES[block], fontsize=8)
    _bare(axes, (-0.3, n + 0.3), (-2.1, 3.2))
    mine = ", ".join(str(i) for i in range(followed, n, total))
    return style.picture(
        figure,
        f"{blocks} blocks of {threads} threads work through {n} elements in {-(-n // total)} steps of {total}. Thread {followed} of block 0 takes "
        f"elements {mine}. In the last step only {n - (n - 1) // total * total} threads have an element.",
    )


def _cell(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, alpha=0.35, edgecolor="none"))
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor="none", edgecolor=style.PAPER, linewidth=1.5))
    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=9)


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor=style.PAPER, edgecolor=colour, linewidth=1.8))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def _bare(axes: Axes, x: Sequence[float], y: Sequence[float], equal: bool = True) -> None:
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    if equal:
        axes.set_aspect("equal")
    axes.axis("off")
