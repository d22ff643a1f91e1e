"""Pictures of attention as its formula stands: two matrix products, the N x N matrix between them, its masks and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.patches import FancyArrowPatch, Rectangle

from labkernels.lab import style

WEIGHT_COLOURS = LinearSegmentedColormap.from_list("weights", [style.PAPER, style.BLUE])
GPU_MEMORY_BYTES = {"H200: 141 GB": 141e9, "laptop GPU: 8 GB": 8e9}


@style.look()
def attention_products(seq: int = 8, head_dim: int = 4) -> style.Picture:
    """The shapes of attention for one head: q k^T makes seq x seq scores, softmax makes them weights, weights times v the output."""
    figure, axes = style.figure(height=1.9)
    tall, thin, gap = seq, head_dim, 1.6
    boxes = [  # name, width, height, colour, what follows
        ("q", thin, tall, style.GREY, "·"),
        ("kᵀ", tall, thin, style.GREY, "="),
        ("scores", tall, tall, style.ORANGE, "→\nsoftmax"),
        ("weights", tall, tall, style.ORANGE, "·"),
        ("v", thin, tall, style.GREY, "="),
        ("output", thin, tall, style.GREY, ""),
    ]
    x = 0.0
    for name, width, height, colour, sign in boxes:
        y = (tall - height) / 2
        _cells(axes, x, y, width, height, colour)
        axes.text(x + width / 2, y - 0.5, name, ha="center", va="bottom", fontweight="bold")
        axes.text(x + width / 2, y + height + 0.3, f"{height} x {width}", ha="center", va="top", fontsize=9)
        room = gap + (3.6 if "\n" in sign else 0.0)
        axes.text(x + width + room / 2, tall / 2, sign, ha="center", va="center", fontsize=11 if "\n" in sign else 16)
        x += width + room
    _bare(axes, (-0.5, x - gap + 0.5), (tall + 1.6, -1.8))
    return style.picture(
        figure,
        f"Six matrices in a row: q, {seq} by {head_dim}, times k transposed gives the scores, {seq} by {seq}; softmax makes the "
        f"weights of the same size; times v gives the output, {seq} by {head_dim}. Scores and weights are by far the largest.",
    )


@style.look()
def attention_weights(weights: torch.Tensor, titles: Sequence[str] = ()) -> style.Picture:
    """The weights themselves, (queries, keys) or (heads, queries, keys): the darker, the more of that key's value is taken."""
    heads = weights.detach().float().cpu().reshape(-1, *weights.shape[-2:])
    count, queries, keys = heads.shape
    wide = 3.6 if count == 1 else 7.0
    height = 0.9 + (wide - 0.8) / count * queries / keys
    figure, panels = style.figure(1, count, width=wide, height=height, squeeze=False)
    for number, (axes, head) in enumerate(zip(panels[0], heads)):
        axes.imshow(head.numpy(), cmap=WEIGHT_COLOURS, vmin=0, vmax=1)
        _lines_between(axes, queries, keys, style.LIGHT)
        axes.set_title(titles[number] if number < len(titles) else "")
        axes.set_xlabel("key")
        axes.set_xticks(range(keys))
        axes.set_yticks(range(queries))
        if number == 0:
            axes.set_ylabel("query")
        if queries * keys <= 100 and count == 1:
            for i in range(queries):
                for j in range(keys):
                    dark = head[i, j] > 0.5
                    axes.text(j, i, f"{head[i, j]:.2f}", ha="center", va="center", fontsize=8, color=style.PAPER if dark else style.INK)
    sums = heads.sum(-1)
    total = "each adds up to 1" if torch.allclose(sums, torch.ones_like(sums), atol=1e-3) else f"they add up to {sums.min():.2f} to {sums.max():.2f}"
    hidden = int((heads[0] == 0).sum())
    grids = "A grid" if count == 1 else f"{count} grids, each"
    return style.picture(
        figure, f"{grids} of {queries} queries by {keys} keys, a row of weights for each query; {total}; {hidden} of a grid's weights are 0."
    )


@style.look()
def attention_masks(seq: int = 5, kv: int = 8, length: int = 5) -> style.Picture:
    """Who may see whom: the causal mask, the causal mask with more keys than queries, and the padding of a shorter sentence."""
    query, key = torch.arange(seq)[:, None], torch.arange(kv)[None, :]
    square = torch.arange(seq)[None, :]
    masks = {
        "causal": square <= query,
        f"causal, {kv - seq} earlier keys": key <= query + kv - seq,
        f"padding after key {length - 1}": (key < length).expand(seq, kv),
    }
    figure, panels = style.figure(1, 3, height=2.6, width_ratios=[seq, kv, kv])
    for axes, (title, visible) in zip(panels, masks.items()):
        axes.imshow(visible.numpy(), cmap=ListedColormap([style.LIGHT, style.BLUE]), vmin=0, vmax=1)
        _lines_between(axes, *visible.shape)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(visible.shape[1]))
        axes.set_yticks(range(visible.shape[0]))
        axes.set_xlabel("key")
    panels[0].set_ylabel("query")
    counts = ", ".join(f"{title}: {int(visible.sum())} of {visible.numel()}" for title, visible in masks.items())
    return style.picture(
        figure,
        f"Three grids, blue where a query sees a key. Causal: query i sees keys 0 to i. With earlier keys the staircase ends in the bottom "
        f"right corner: the last query sees all. Padding: no query sees the columns behind the sentence. Visible pairs: {counts}.",
    )


@style.look()
def grouped_heads(heads: int = 8, kv_heads: int = 2) -> style.Picture:
    """Which key head each query head reads, in grouped-query attention."""
    if heads % kv_heads:
        raise ValueError(f"grouped_heads: {heads} query heads cannot share {kv_heads} key heads evenly")
    group = heads // kv_heads
    figure, axes = style.figure(height=1.9)
    for head in range(heads):
        shared = head // group
        colour = style.SERIES[shared % len(style.SERIES)]
        x, kv_x = head + 0.5, (shared + 0.5) * group
        axes.plot([x, kv_x], [0.72, 0.28], color=colour, linewidth=1.5)
        _labelled(axes, x - 0.4, 0.72, 0.8, 0.24, str(head), colour)
    for shared in range(kv_heads):
        colour = style.SERIES[shared % len(style.SERIES)]
        _labelled(axes, (shared + 0.5) * group - 0.4, 0.04, 0.8, 0.24, str(shared), colour)
    axes.text(-0.2, 0.84, "query heads", ha="right", va="center")
    axes.text(-0.2, 0.16, "key and value heads", ha="right", va="center")
    _bare(axes, (-2.6 * heads / 8, heads), (0, 1), equal=False)
    return style.picture(
        figure,
        f"{heads} query heads above, {kv_heads} key heads below. Query heads 0 to {group - 1} are joined to key head 0, "
        f"the next {group} to key head 1, and so on.",
    )


@style.look()
def score_threads(seq: int = 20, kv: int = 80, block: tuple[int, int] = (32, 8), query: int = 11, key: int = 37) -> style.Picture:
    """One thread a score: the blocks that cover the matrix, and what the thread of one score reads."""
    wide, high = block
    if not (query < seq and key < kv):
        raise ValueError(f"score_threads: query {query}, key {key} lies outside of {seq} x {kv}")
    cols, rows = math.ceil(kv / wide), math.ceil(seq / high)
    figure, axes = style.figure(height=2.5)
    for row in range(rows):
        for col in range(cols):
            chosen = (row, col) == (query // high, key // wide)
            face = style.SKY if chosen else style.PAPER
            axes.add_patch(Rectangle((col * wide, row * high), wide, high, facecolor=face, edgecolor=style.GREY, alpha=0.6 if chosen else 1.0))
            axes.text(col * wide + 0.8, row * high + 0.8, f"block ({col}, {row})", va="top", fontsize=8, color=style.INK)
    axes.add_patch(Rectangle((0, 0), kv, seq, fill=False, edgecolor=style.INK, linewidth=2))
    axes.add_patch(Rectangle((key, query), 1, 1, facecolor=style.RED, edgecolor=style.RED))
    q_left, k_top = -8.5, -5.5
    axes.add_patch(Rectangle((q_left, 0), 5, seq, facecolor=style.LIGHT))
    axes.add_patch(Rectangle((q_left, query), 5, 1, facecolor=style.RED))
    axes.add_patch(Rectangle((0, k_top), kv, 3, facecolor=style.LIGHT))
    axes.add_patch(Rectangle((key, k_top), 1, 3, facecolor=style.RED))
    axes.plot([q_left + 5, key], [query + 0.5] * 2, color=style.RED, linewidth=0.8, linestyle=":")
    axes.plot([key + 0.5] * 2, [k_top + 3, query], color=style.RED, linewidth=0.8, linestyle=":")
    axes.text(q_left + 2.5, -1.0, "q", ha="center", fontweight="bold")
    axes.text(-1.0, k_top + 1.5, "kᵀ", ha="right", va="center", fontweight="bold")
    beyond = f"{rows * high - seq} rows and {cols * wide - kv} columns of threads stick out"
    axes.text(0, rows * high + 1.0, f"scores, {seq} x {kv} (thick frame); {beyond}", va="top", fontsize=9)
    _bare(axes, (q_left - 1, cols * wide + 1), (rows * high + 3.5, k_top - 1))
    return style.picture(
        figure,
        f"A matrix of {seq} by {kv} scores covered by {rows} by {cols} blocks of {high} by {wide} threads, which stick out at the bottom and "
        f"right. The thread of query {query}, key {key} lies in block ({key // wide}, {query // high}) and reads row {query} of q and row {key} of k.",
    )


@style.look()
def attention_memory(
    heads: int = 32, head_dim: int = 64, lengths: Sequence[int] = tuple(2**power for power in range(9, 19)), flash: bool = False
) -> style.Picture:
    """Bytes of float32 scores against sequence length, for one sentence, beside q, k, v and output, and two GPUs' memories.

    With `flash`, what attention takes that keeps no scores is drawn in the colour of the right answer.
    """
    scores = [4 * heads * n * n for n in lengths]
    rest = [4 * 4 * heads * n * head_dim for n in lengths]
    figure, axes = style.figure(height=3.6)
    axes.plot(lengths, scores, "o-", color=style.ORANGE)
    colour = style.GREEN if flash else style.GREY
    axes.plot(lengths, rest, "o-", color=colour)
    middle, late = (len(lengths) - 1) // 2, len(lengths) * 3 // 4
    axes.annotate("scores", (lengths[late], scores[late]), xytext=(-8, 4), textcoords="offset points", ha="right", color=style.ORANGE)
    label = "q, k, v, output: all that flash attention keeps" if flash else "q, k, v and output"
    axes.annotate(label, (lengths[middle], rest[middle]), xytext=(6, -16), textcoords="offset points", color=colour)
    for name, size in GPU_MEMORY_BYTES.items():
        axes.axhline(size, color=style.LIMIT, linewidth=1.2, linestyle="--")
        axes.text(lengths[0], size * 1.25, name, va="bottom", fontsize=9)
    style.ratio_axis(axes, "x", lengths, lambda n: f"{n // 1024}k" if n >= 1024 else str(int(n)))
    axes.set_yscale("log", base=10)
    axes.yaxis.set_major_formatter(lambda value, _: style.bytes_label(value))
    axes.yaxis.set_minor_locator(style.NullLocator())
    axes.grid(True, axis="y")
    axes.set_xlabel("tokens (queries and keys)")
    axes.set_ylabel("memory")
    axes.set_title(f"{heads} heads of {head_dim}, float32")
    fits = {name: max((n for n, size in zip(lengths, scores) if size <= limit), default=0) for name, limit in GPU_MEMORY_BYTES.items()}
    told = " ".join(f"The scores of {n} tokens fit into {name.split(':')[0]}, of {2 * n} they do not." for name, n in fits.items())
    return style.picture(
        figure,
        f"Bytes against tokens on ratio axes, {heads} heads of {head_dim}. The scores' line climbs four times for each doubling, from "
        f"{style.bytes_label(scores[0])} to {style.bytes_label(scores[-1])}; q, k, v and output double, from {style.bytes_label(rest[0])} to "
        f"{style.bytes_label(rest[-1])}. {told}",
    )


@style.look()
def score_traffic(seq: int = 4096, heads: int = 32) -> style.Picture:
    """The N x N matrix's trips: three kernels above, memory below, and how many bytes each arrow carries."""
    one = 4 * heads * seq * seq
    trips: Mapping[str, tuple[str, ...]] = {"scores": ("write",), "softmax": ("read", "write"), "output": ("read",)}
    figure, axes = style.figure(height=2.2)
    axes.add_patch(Rectangle((0, 0), 10, 0.8, facecolor=style.MEMORY["global"], alpha=0.5))
    axes.text(5, 0.4, "memory: the matrix of scores", ha="center", va="center", fontweight="bold")
    for kernel, centre in zip(trips, (1.5, 5.0, 8.5)):
        _labelled(axes, centre - 1.1, 2.6, 2.2, 0.8, kernel, style.BLUE)
        for number, trip in enumerate(trips[kernel]):
            x = centre + (number - (len(trips[kernel]) - 1) / 2) * 1.3
            ends = ((x, 0.85), (x, 2.55)) if trip == "read" else ((x, 2.55), (x, 0.85))
            axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=14, color=style.INK, linewidth=1.5))
            axes.text(x + 0.12, 1.7, f"{trip}\n{style.bytes_label(one)}", fontsize=8, va="center")
    _bare(axes, (-0.1, 10.1), (-0.1, 3.6), equal=False)
    count = sum(map(len, trips.values()))
    return style.picture(
        figure,
        f"Three kernels above memory. The scores kernel writes the matrix, softmax reads it and writes it back, the output kernel reads it: "
        f"{count} arrows of {style.bytes_label(one)}, {style.bytes_label(count * one)} in all, for {heads} heads of {seq} tokens.",
    )


def _cells(axes: Axes, x: float, y: float, width: int, height: int, colour: str) -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, alpha=0.35, edgecolor="none"))
    for i in range(width + 1):
        axes.plot([x + i] * 2, [y, y + height], color=style.PAPER, linewidth=0.8)
    for j in range(height + 1):
        axes.plot([x, x + width], [y + j] * 2, color=style.PAPER, linewidth=0.8)


def _labelled(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor=style.PAPER, edgecolor=colour, linewidth=1.8))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center")


def _lines_between(axes: Axes, rows: int, cols: int, colour: str = style.PAPER) -> None:
    for row in range(rows + 1):
        axes.axhline(row - 0.5, color=colour, linewidth=1)
    for col in range(cols + 1):
        axes.axvline(col - 0.5, color=colour, linewidth=1)


def _bare(axes: Axes, x: tuple[float, float], y: tuple[float, float], equal: bool = True) -> None:
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    if equal:
        axes.set_aspect("equal")
    axes.axis("off")
