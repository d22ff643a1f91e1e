"""Pictures of matrix multiplication: what one element, one tile and one thread's patch of the result need of a and b."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from labkernels.lab import style


@style.look()
def matmul_element(size: int = 8, row: int = 2, col: int = 5) -> style.Picture:
    """One element of c = a b: a row of a and a column of b, multiplied pair by pair and added up."""
    figure, axes = style.figure(height=3.0)
    gap = 1.0
    _matrix(axes, 0, 0, size, size, "a")
    _matrix(axes, size + gap, size + gap, size, size, "b")
    _matrix(axes, size + gap, 0, size, size, "c")
    _cells(axes, 0, 0, size, [(row, i) for i in range(size)], style.BLUE)
    _cells(axes, size + gap, size + gap, size, [(i, col) for i in range(size)], style.GREEN)
    _cells(axes, size + gap, 0, size, [(row, col)], style.PURPLE)
    right, middle = 2 * size + gap + 0.8, size - row - 0.5
    axes.text(right, middle, f"c[{row}][{col}]: {size} multiplications,\n{size} numbers of a, {size} of b", va="center", fontsize=9)
    _bare(axes, size, gap)
    return style.picture(
        figure,
        f"Matrices a below left, b above right and c between them, {size} by {size}. Row {row} of a and column {col} of b are marked, and where they "
        f"meet the element of c for which both are needed, {size} numbers of each.",
    )


@style.look()
def matmul_tiles(tiles: int = 3, side: int = 4, row: int = 1, col: int = 2, step: int = 1) -> style.Picture:
    """A block's tile of c, and the tiles of a and b that meet in shared memory, pair by pair."""
    figure, axes = style.figure(height=3.3)
    size, gap = tiles * side, 1.2
    _matrix(axes, 0, 0, size, size, "a", side)
    _matrix(axes, size + gap, size + gap, size, size, "b", side)
    _matrix(axes, size + gap, 0, size, size, "c", side)
    for at in range(tiles):
        alpha = 0.9 if at == step else 0.3
        _tile(axes, at * side, size - (row + 1) * side, side, style.BLUE, alpha)
        _tile(axes, size + gap + col * side, size + gap + size - (at + 1) * side, side, style.GREEN, alpha)
    _tile(axes, size + gap + col * side, size - (row + 1) * side, side, style.PURPLE, 0.9)
    y, x = size - (row + 0.5) * side, size + gap + (col + 0.5) * side
    axes.add_patch(FancyArrowPatch((0.3, y), (size - 0.3, y), arrowstyle="-|>", mutation_scale=12, color=style.INK, linewidth=1.2))
    axes.add_patch(FancyArrowPatch((x, size + gap + size - 0.3), (x, size + gap + 0.3), arrowstyle="-|>", mutation_scale=12, color=style.INK, linewidth=1.2))
    axes.text(2 * size + gap + 0.8, y, f"one block, {side} x {side} threads;\nwhat it reads once serves\n{side} multiplications", va="center", fontsize=9)
    _bare(axes, size, gap)
    return style.picture(
        figure,
        f"Matrices a, b and c cut into tiles of {side} by {side}. A block owns one tile of c. It walks along {tiles} tiles of a and down {tiles} tiles of b; "
        f"the pair that is in shared memory now is drawn strong. Each number of a tile takes part in {side} multiplications.",
    )


@style.look()
def register_patch(sides: Sequence[int] = (1, 2, 4)) -> style.Picture:
    """What a thread loads for one step of k, and what it multiplies with that: patches of 1, 4 and 16 elements."""
    figure, panels = style.figure(1, len(sides), height=2.3, squeeze=False)
    most, told = max(sides), []
    for axes, side in zip(panels[0], sides):
        for i in range(side):
            axes.add_patch(Rectangle((-1.5, most - i - 1), 1, 1, facecolor=style.BLUE, alpha=0.75, edgecolor=style.PAPER))
            axes.add_patch(Rectangle((i, most + 0.5), 1, 1, facecolor=style.GREEN, alpha=0.75, edgecolor=style.PAPER))
            for j in range(side):
                axes.add_patch(Rectangle((j, most - i - 1), 1, 1, facecolor=style.PURPLE, alpha=0.75, edgecolor=style.PAPER))
        loads, products = 2 * side, side * side
        axes.set_title(f"{loads} loads, {products} FMA{'s' if products > 1 else ''}", fontsize=10)
        axes.set_xlim(-1.7, most + 0.3)
        axes.set_ylim(-0.1, most + 1.7)
        axes.set_aspect("equal", anchor="NW")
        axes.axis("off")
        told.append(f"{side} by {side}: {loads} loads for {products} products, {loads / products:g} each")
    return style.picture(
        figure, f"A thread's numbers in one step: some of a in a column at the left, some of b in a row above, their products between. {'; '.join(told)}."
    )


def _matrix(axes: Axes, left: float, bottom: float, cols: int, rows: int, name: str, every: int = 1) -> None:
    axes.add_patch(Rectangle((left, bottom), cols, rows, facecolor=style.LIGHT, edgecolor="none"))
    for at in range(0, cols + 1, every):
        axes.plot([left + at] * 2, [bottom, bottom + rows], color=style.PAPER, linewidth=1.0)
    for at in range(0, rows + 1, every):
        axes.plot([left, left + cols], [bottom + at] * 2, color=style.PAPER, linewidth=1.0)
    axes.text(left - 0.3, bottom + rows, name, ha="right", va="top", fontweight="bold")


def _cells(axes: Axes, left: float, bottom: float, rows: int, cells: Sequence[tuple[int, int]], colour: str) -> None:
    for row, col in cells:
        axes.add_patch(Rectangle((left + col, bottom + rows - row - 1), 1, 1, facecolor=colour, alpha=0.75, edgecolor=style.PAPER))


def _tile(axes: Axes, left: float, bottom: float, side: int, colour: str, alpha: float) -> None:
    axes.add_patch(Rectangle((left, bottom), side, side, facecolor=colour, alpha=alpha, edgecolor=style.PAPER, linewidth=1.5))


def _bare(axes: Axes, size: int, gap: float) -> None:
    axes.set_xlim(-1.0, 2 * size + gap + 0.95 * size)
    axes.set_ylim(-0.2, 2 * size + gap + 0.2)
    axes.set_aspect("equal")
    axes.axis("off")
