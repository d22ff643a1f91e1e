"""Pictures of attention's backward pass: what flows back, the gradient of a softmax, and the two walks over the tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from labkernels.lab import style

_BIG, _TALL, _THIN = 1.5, 1.5, 0.5  # an N x N matrix is big; one of N rows of head_dim is tall and thin


@style.look()
def attention_gradients() -> style.Picture:
    """The dataflow of attention and, below it, of its gradients; N x N matrices are drawn as squares, dashed, for nobody stores them."""
    figure, axes = style.figure(height=3.5)
    forward, backward = 3.2, 0.0
    for y, prefix, colour in ((forward, "", style.BLUE), (backward, "d", style.GREEN)):
        for name, x in (("Q", 0.3), ("K", 1.0), ("V", 7.9), ("O", 10.2)):
            _matrix(axes, prefix + name, x, y, _THIN, colour)
        for name, x in (("S", 3.0), ("P", 5.7)):
            _matrix(axes, prefix + name, x, y, _BIG, colour, dashed=True)
    middle, low = _TALL / 2 + forward, _TALL / 2 + backward
    _arrow(axes, (1.6, middle), (2.9, middle), style.BLUE, "Q K\u1d40")
    _arrow(axes, (4.6, middle), (5.6, middle), style.BLUE, "softmax")
    _arrow(axes, (8.5, middle), (10.1, middle), style.BLUE, "P V")
    axes.text(7.55, middle, "\u00b7", ha="center", va="center", fontsize=18, color=style.BLUE)
    _arrow(axes, (10.1, low), (8.5, low), style.GREEN, "P\u1d40 dO")
    _arrow(axes, (10.3, backward - 0.1), (7.2, backward + 0.1), style.GREEN, "", bend=-0.35)
    axes.text(9.1, backward - 1.0, "dO V\u1d40", ha="center", va="bottom", fontsize=9)
    _arrow(axes, (5.6, low), (4.6, low), style.GREEN, "softmax,\nbackwards")
    _arrow(axes, (2.9, low), (1.6, low), style.GREEN, "dS K\ndS\u1d40 Q")
    axes.text(0.3, forward + 2.1, "forward", color=style.BLUE, fontweight="bold", va="center")
    axes.text(0.3, backward + 2.1, "backward", color=style.GREEN, fontweight="bold", va="center")
    axes.text(5.1, forward - 0.55, "dashed: N x N, never stored", ha="center", fontsize=9, va="center")
    axes.set_xlim(0, 11)
    axes.set_ylim(-1.1, 5.6)
    axes.axis("off")
    return style.picture(
        figure,
        "Forward, in blue: Q and K give the scores S, a softmax makes of them the weights P, and P with V gives the output O. Backward, in "
        "green: dO gives dV and dP, the softmax backwards makes dS of dP, and dS gives dQ and dK. S, P, dP and dS are N by N and dashed: "
        "never stored.",
    )


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, text: str, bend: float = 0.0) -> None:
    curve = f"arc3,rad={bend}"
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=colour, linewidth=1.6, connectionstyle=curve, shrinkA=0, shrinkB=0))
    axes.text((start[0] + end[0]) / 2, start[1] + 0.12, text, ha="center", va="bottom", fontsize=9)


def _matrix(axes: Axes, name: str, x: float, y: float, width: float, colour: str, dashed: bool = False) -> None:
    axes.add_patch(Rectangle((x, y), width, _TALL, facecolor=colour, alpha=0.1 if dashed else 0.3))
    axes.add_patch(Rectangle((x, y), width, _TALL, fill=False, edgecolor=colour, linestyle="--" if dashed else "-", linewidth=1.4))
    axes.text(x + width / 2, y + _TALL / 2, name, ha="center", va="center", fontweight="bold", fontsize=11 if len(name) == 1 else 9)


@style.look()
def softmax_gradient(weights: Sequence[float] = (0.1, 0.4, 0.3, 0.2), gradients: Sequence[float] = (2.0, 1.0, 4.0, -1.0)) -> style.Picture:
    """One row: how far each weight's gradient is from the average of all, and, times the weight, the gradient of the score."""
    p, dp = torch.tensor(weights, dtype=torch.float64), torch.tensor(gradients, dtype=torch.float64)
    if len(p) != len(dp) or abs(p.sum().item() - 1) > 1e-6 or (p < 0).any():
        raise ValueError("softmax_gradient: give as many weights as gradients; weights are not negative and sum to 1")
    average = (p * dp).sum().item()
    ds = p * (dp - average)
    names = [f"{weight:g}" for weight in weights]
    figure, (left, right) = style.figure(1, 2, height=2.9)
    left.bar(range(len(p)), dp.tolist(), width=0.2, color=style.BLUE, label="dp")
    left.axhline(average, color=style.INK, linestyle="--", linewidth=1.4)
    left.text(len(p) + 0.25, average + 0.08, f"δ = {average:g}", ha="right", va="bottom", fontsize=9)
    for index, value in enumerate(dp.tolist()):
        tone = style.RIGHT if value > average else style.WRONG
        left.add_patch(FancyArrowPatch((index + 0.24, average), (index + 0.24, value), arrowstyle="-|>", mutation_scale=11, color=tone, linewidth=1.8, shrinkA=0, shrinkB=0))
    left.set_xlim(-0.5, len(p) + 0.3)
    left.set_title("dp, and its distance from the average", fontsize=10)
    right.bar(range(len(p)), ds.tolist(), width=0.5, color=[style.RIGHT if value > 0 else style.WRONG for value in ds.tolist()])
    right.set_title("ds: the distance times p", fontsize=10)
    for axes in (left, right):
        axes.axhline(0, color=style.GREY, linewidth=0.8)
        axes.set_xticks(range(len(p)), names)
        axes.set_xlabel("weight p")
    return style.picture(
        figure,
        f"Two bar charts over weights {', '.join(names)}. Left: gradients of the weights, {', '.join(f'{g:g}' for g in gradients)}; a dashed line at "
        f"their weighted average {average:g}; arrows from the line to each bar's end. Right: the arrows' lengths times the weights: gradients of the scores "
        f"{', '.join(f'{value:.2g}' for value in ds.tolist())}, whose sum is 0.",
    )


@style.look()
def gradient_walks(query_blocks: int = 4, key_blocks: int = 5, key: int = 2, query: int = 1) -> style.Picture:
    """A block that owns keys and walks down the queries, and one that owns queries and walks along the keys: what each gradient collects."""
    if not (0 <= key < key_blocks and 0 <= query < query_blocks):
        raise ValueError(f"gradient_walks: there is no block {key} of keys or no block {query} of queries")
    figure, panels = style.figure(1, 2, height=3.3)
    for axes, own_keys in zip(panels, (True, False)):
        for row in range(query_blocks):
            for col in range(key_blocks):
                own = col == key if own_keys else row == query
                axes.add_patch(Rectangle((col, row), 1, 1, facecolor=style.BLUE if own else style.LIGHT, alpha=0.45 if own else 0.6, edgecolor=style.PAPER, linewidth=1.2))
        for row in range(query_blocks):
            mine = not own_keys and row == query
            tone, alpha = (style.GREEN, 0.85) if mine else (style.ORANGE, 0.75) if own_keys else (style.LIGHT, 1.0)
            axes.add_patch(Rectangle((key_blocks + 0.4, row), 0.6, 1, facecolor=tone, alpha=alpha, edgecolor=style.PAPER))
            axes.text(key_blocks + 0.7, row + 0.5, "+=" if own_keys else "dQ" if mine else "", ha="center", va="center", fontsize=9)
        for col in range(key_blocks):
            mine = own_keys and col == key
            for below, name in ((0.4, "dK"), (1.15, "dV")):
                axes.add_patch(Rectangle((col, query_blocks + below), 1, 0.6, facecolor=style.GREEN if mine else style.LIGHT, alpha=0.85 if mine else 1, edgecolor=style.PAPER))
                axes.text(col + 0.5, query_blocks + below + 0.3, name if mine else "", ha="center", va="center", fontsize=9)
        start, end = ((key + 0.5, 0.15), (key + 0.5, query_blocks - 0.15)) if own_keys else ((0.15, query + 0.5), (key_blocks - 0.15, query + 0.5))
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=16, color=style.INK, linewidth=1.6, shrinkA=0, shrinkB=0))
        axes.text(key_blocks / 2, -0.15, "keys", ha="center", va="bottom", fontsize=9)
        axes.text(-0.15, query_blocks / 2, "queries", ha="right", va="center", rotation=90, fontsize=9)
        axes.text(key_blocks + 0.7, -0.15, "dQ", ha="center", va="bottom", fontsize=9)
        axes.set_xlim(-0.6, key_blocks + 1.1)
        axes.set_ylim(query_blocks + 1.8, -0.8)
        axes.set_aspect("equal")
        axes.axis("off")
    panels[0].set_title("a block owns keys, queries walk by", fontsize=10)
    panels[1].set_title("a block owns queries, keys walk by", fontsize=10)
    return style.picture(
        figure,
        f"Twice a grid of {query_blocks} blocks of queries by {key_blocks} blocks of keys. Left, a block owns column {key} and walks down it: its dK and dV "
        f"are complete at the end (green), and it adds a share to each of the {query_blocks} blocks of dQ (orange). Right, a block owns row {query} and walks along "
        f"it: its dQ is complete at the end.",
    )
