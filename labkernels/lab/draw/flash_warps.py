"""Pictures of flash attention's upper rungs: accumulators that are operands already, and how copies, products and softmax overlap."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from labkernels.lab import style


def score_at(lane: int, half: int, index: int) -> tuple[int, int]:
    """Row and column, of 16 scores by 16, of a lane's `score[half][index]`: two accumulators of mma.m16n8k16 side by side."""
    return lane // 4 + index // 2 * 8, 8 * half + lane % 4 * 2 + index % 2


def weight_at(lane: int, register: int, part: int) -> tuple[int, int]:
    """Row and column, of the 16 by 16 left operand of mma.m16n8k16, of the low (0) or high (1) part of a lane's register."""
    return lane // 4 + register % 2 * 8, register // 2 * 8 + lane % 4 * 2 + part


@style.look()
def scores_become_weights(lane: int = 9) -> style.Picture:
    """Who holds what of 16 x 16 scores, after the first product and before the second: the same lanes the same places."""
    if not 0 <= lane < 32:
        raise ValueError(f"scores_become_weights: a warp has lanes 0 to 31, and no lane {lane}")
    figure, (left, right) = style.figure(1, 2, height=3.8)
    own_left = {score_at(lane, half, i): f"s{half}[{i},{i + 1}]" for half in (0, 1) for i in range(4)}
    own_right = {weight_at(lane, register, part): f"w[{register}]" for register in range(4) for part in (0, 1)}
    left_lane = {score_at(other, half, i): other for other in range(32) for half in (0, 1) for i in range(4)}
    right_lane = {weight_at(other, register, part): other for other in range(32) for register in range(4) for part in (0, 1)}
    _lanes(left, left_lane, own_left)
    _lanes(right, right_lane, own_right)
    left.set_title("scores: two accumulators", fontsize=10)
    right.set_title("weights: the left operand", fontsize=10)
    left.plot([8, 8], [0, 16], color=style.INK, linewidth=1.8)
    left.set_ylabel("query")
    for axes in (left, right):
        axes.set_xlabel("key")
    g, t = divmod(lane, 4)
    return style.picture(
        figure,
        f"Twice a square of 16 queries by 16 keys, each cell with the number of the lane that holds it. Left, after the first product: two accumulators "
        f"of 8 keys; lane {lane} has 4 numbers of each, in rows {g} and {g + 8}, columns {2 * t}, {2 * t + 1}, {2 * t + 8} and {2 * t + 9}. Right, the "
        f"left operand of the second product: lane {lane} has the same 8 places, two neighbours in each of its 4 registers.",
    )


def _lanes(axes: Axes, owner: dict, own: dict) -> None:
    """Each cell with its lane's number; those of one lane, neighbours by two, with their names."""
    for (row, col), other in owner.items():
        mine = (row, col) in own
        tone = style.GREEN if mine else style.LIGHT if (other // 4 + other % 4) % 2 else style.PAPER
        axes.add_patch(Rectangle((col, row), 1, 1, facecolor=tone, alpha=0.9 if mine else 0.7, edgecolor=style.LIGHT, linewidth=0.5))
        if not mine:
            axes.text(col + 0.5, row + 0.5, str(other), ha="center", va="center", fontsize=5, color=style.GREY)
        elif (row, col - 1) not in own:  # the first of two neighbours: one frame for both
            axes.add_patch(Rectangle((col, row), 2, 1, fill=False, edgecolor=style.INK, linewidth=1.2, zorder=3))
            axes.text(col + 1, row + 0.5, own[row, col], ha="center", va="center", fontsize=6, fontweight="bold", zorder=4)
    axes.set_xlim(0, 16)
    axes.set_ylim(16, 0)
    axes.set_aspect("equal")
    axes.set_xticks([0.5, 4.5, 8.5, 12.5], [0, 4, 8, 12])
    axes.set_yticks([0.5, 4.5, 8.5, 12.5], [0, 4, 8, 12])
    axes.tick_params(length=0, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)


@style.look()
def attention_schedules(tiles: int = 3, copy: float = 1.0, product: float = 2.0, softmax: float = 2.0) -> style.Picture:
    """Copies, products and softmax of `tiles` tiles in time: one after the other, the copies underneath, and two groups in turn."""
    figure, panels = style.figure(3, 1, height=4.6, sharex=True)
    ends = [draw(axes, tiles, copy, product, softmax) for axes, draw in zip(panels, (_serial, _copies_meanwhile, _in_turn))]
    titles = ("v3: one after the other", "v4: the next tile is copied meanwhile", "v6: two groups of warps take turns, each with queries of its own")
    for axes, title, end, groups in zip(panels, titles, ends, (1, 1, 2)):
        rows = ["copies", "products", "softmax"]
        axes.set_title(title, fontsize=10)
        axes.set_yticks([2, 1, 0], rows)
        axes.set_ylim(-0.5, 2.5)
        axes.set_xlim(0, max(ends) * 1.02)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.axvline(end, color=style.INK, linestyle=":", linewidth=1.2)
    panels[-1].set_xlabel("time")
    busy = [groups * tiles * product / end for groups, end in zip((1, 1, 2), ends)]
    return style.picture(
        figure,
        f"Three timelines of {tiles} tiles, with rows for copies, products and softmax. v3 does one after the other: products run {busy[0]:.0%} of the time. "
        f"v4 copies the next tile while this one is computed: {busy[1]:.0%}. v6 has two groups of warps, one in softmax while the other "
        f"has the products: twice as many queries are served, and products run {busy[2]:.0%} of the time.",
    )


def _span(axes: Axes, start: float, length: float, row: int, colour: str, text: str) -> None:
    axes.add_patch(Rectangle((start, row - 0.36), length, 0.72, facecolor=colour, edgecolor=style.PAPER, alpha=0.85))
    axes.text(start + length / 2, row, text, ha="center", va="center", fontsize=8)


def _serial(axes: Axes, tiles: int, copy: float, product: float, softmax: float) -> float:
    now = 0.0
    for tile in range(tiles):
        _span(axes, now, copy, 2, style.SKY, str(tile))
        _span(axes, now + copy, product / 2, 1, style.BLUE, str(tile))
        _span(axes, now + copy + product / 2, softmax, 0, style.ORANGE, str(tile))
        _span(axes, now + copy + product / 2 + softmax, product / 2, 1, style.BLUE, str(tile))
        now += copy + product + softmax
    return now


def _copies_meanwhile(axes: Axes, tiles: int, copy: float, product: float, softmax: float) -> float:
    _span(axes, 0, copy, 2, style.SKY, "0")
    now = copy
    for tile in range(tiles):
        if tile + 1 < tiles:
            _span(axes, now, copy, 2, style.SKY, str(tile + 1))
        _span(axes, now, product / 2, 1, style.BLUE, str(tile))
        _span(axes, now + product / 2, softmax, 0, style.ORANGE, str(tile))
        _span(axes, now + product / 2 + softmax, product / 2, 1, style.BLUE, str(tile))
        now += max(copy, product + softmax)
    return now


def _in_turn(axes: Axes, tiles: int, copy: float, product: float, softmax: float) -> float:
    """Groups A and B; a group's turn at the products is p v of its last tile and q k^T of its next."""
    _span(axes, 0, copy, 2, style.SKY, "0")
    turn = max(product, softmax)
    for group, (name, colour) in enumerate((("A", style.BLUE), ("B", style.GREEN))):
        now = copy + group * turn
        for tile in range(tiles):
            if group == 0 and tile + 1 < tiles:
                _span(axes, now, copy, 2, style.SKY, str(tile + 1))
            _span(axes, now, product, 1, colour, f"{name}{tile}")
            _span(axes, now + product, softmax, 0, colour, f"{name}{tile}")
            now += 2 * turn
    return copy + turn * (2 * tiles) + softmax
