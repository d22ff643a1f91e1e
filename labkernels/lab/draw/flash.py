"""Pictures of flash attention: the accumulator that is rescaled, the walk over tiles, its two barriers, and the causal diagonal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyArrowPatch, Rectangle

from labkernels.lab import style


@style.look()
def accumulator(
    scores: Sequence[float] = (1.0, 2.0, 1.5, 2.7), values: Sequence[Sequence[float]] = ((1.0, 0.4), (0.3, 1.0), (0.8, 0.6), (0.2, 0.9))
) -> style.Picture:
    """One query, one frame a key: sum and output as they grow, measured against the largest score so far.

    Each key's share is one colour. Where a larger score arrives, what was there before shrinks from the dashed outline. Values must not be
    negative, so that the shares can be stacked.
    """
    shares = torch.tensor([[1.0, *value] for value in values])  # of the sum, then of each element of the output
    if len(shares) != len(scores) or (shares < 0).any():
        raise ValueError("accumulator: give one value (of numbers that are not negative) for each score")
    names = ["sum", *(f"o[{i}]" for i in range(shares.shape[1] - 1))]
    figure, panels = style.figure(1, len(scores), height=2.9, sharey=True, squeeze=False)
    told, before = [], torch.zeros(shares.shape[1])
    top = max(_stack(scores[: n + 1], shares[: n + 1]).sum(0).max().item() for n in range(len(scores)))
    for number, axes in enumerate(panels[0]):
        parts = _stack(scores[: number + 1], shares[: number + 1])
        bottom = torch.zeros(shares.shape[1])
        for key, part in enumerate(parts):
            axes.bar(names, part.tolist(), bottom=bottom.tolist(), color=style.SERIES[key % len(style.SERIES)], width=0.62)
            bottom += part
        factor = math.exp((max(scores[:number]) if number else -math.inf) - max(scores[: number + 1]))
        if 0 < factor < 1:
            axes.bar(names, before.tolist(), width=0.72, fill=False, edgecolor=style.INK, linestyle="--", linewidth=1)
        what = "the first" if number == 0 else "max stays" if factor == 1 else f"all before × {factor:.2f}"
        axes.set_title(f"key {number}: score {scores[number]:g}\n{what}", fontsize=9)
        axes.set_ylim(0, 1.08 * top)
        told.append(f"Key {number}, score {scores[number]:g}: {what}; sum {bottom[0]:.2f}.")
        before = bottom
    panels[0][0].set_ylabel("measured against the max")
    return style.picture(figure, "Stacked bars of the sum and of the output's elements, one frame a key. " + " ".join(told))


@style.look()
def attention_tiles(query_blocks: int = 4, key_tiles: int = 6, block: int = 1, tile: int = 3) -> style.Picture:
    """The walk: one block of queries at a time, one tile of keys and values after the other, and where everything lives."""
    if not (0 <= block < query_blocks and 0 <= tile < key_tiles):
        raise ValueError(f"attention_tiles: there is no block {block} or no tile {tile}")
    in_memory, shared, registers = (style.MEMORY[place] for place in ("global", "shared", "registers"))
    wide, high = 1.6, 1.0
    width, height = wide * key_tiles, high * query_blocks
    figure, axes = style.figure(height=3.6)
    for y, name in ((-1.9, "k"), (-1.0, "v")):
        for number in range(key_tiles):
            _box(axes, number * wide, y, wide, 0.7, shared if number == tile else in_memory, 0.9 if number == tile else 0.35)
        axes.text(-0.2, y + 0.35, name, ha="right", va="center", fontweight="bold")
    for x, name in ((-1.5, "q"), (width + 0.7, "output")):
        for number in range(query_blocks):
            _box(axes, x, number * high, 0.8, high, registers if number == block else in_memory, 0.9 if number == block else 0.35)
        axes.text(x + 0.4, height + 0.15, name, ha="center", va="top", fontweight="bold")
    axes.add_patch(Rectangle((0, 0), width, height, fill=False, edgecolor=style.GREY, linestyle=":"))
    for number in range(tile + 1):
        colour, alpha = (registers, 0.9) if number == tile else (style.GREY, 0.15)
        _box(axes, number * wide, block * high, wide, high, colour, alpha)
        what = "scores of\nthis tile" if number == tile else "gone"
        axes.text((number + 0.5) * wide, (block + 0.5) * high, what, ha="center", va="center", fontsize=8)
    if tile + 1 < key_tiles:
        start, end = ((tile + 1.1) * wide, (block + 0.5) * high), (width - 0.1, (block + 0.5) * high)
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=style.INK))
    far = block + 1 if block + 1 < query_blocks else block - 1
    axes.text(width / 2, (far + 0.5) * high, "other blocks, at the same time", ha="center", va="center", color=style.GREY, fontsize=9)
    for number, (place, label) in enumerate((("global", "memory"), ("shared", "shared memory"), ("registers", "registers"))):
        x = -1.5 + number * 4.6
        _box(axes, x, height + 1.1, 0.5, 0.5, style.MEMORY[place], 0.8)
        axes.text(x + 0.7, height + 1.35, label, va="center", fontsize=9)
    axes.set_xlim(-1.8, width + 1.8)
    axes.set_ylim(height + 1.8, -2.1)
    axes.axis("off")
    return style.picture(
        figure,
        f"A dotted frame of {query_blocks} query blocks by {key_tiles} key tiles: the scores, never stored as a whole. Block {block} holds its "
        f"queries and its output in registers and has tile {tile} of k and v in shared memory; the scores of tiles before it are gone, an "
        f"arrow points to the tiles that follow. The rest of q, k, v and output lies in memory.",
    )


_LOAD, _COMPUTE = 2.0, (3.0, 5.2)  # how long the two warps of `tile_barriers` take


@style.look()
def tile_barriers() -> style.Picture:
    """Two warps walk over two tiles, with both barriers and without the second: where one overwrites what the other still reads."""
    figure, panels = style.figure(2, 1, height=3.4, sharex=True)
    for axes, second in zip(panels, (True, False)):
        _timeline(axes, second)
    panels[0].set_title("load, barrier, compute, barrier", fontsize=10)
    panels[1].set_title("without the second barrier", fontsize=10)
    panels[1].set_xlabel("time")
    return style.picture(
        figure,
        "Two timelines of two warps. With two barriers both warps load tile 0, wait, compute with it, wait again, and only then load tile 1. "
        "Without the second barrier warp 0, which is done first, loads tile 1 over tile 0 while warp 1 still computes with it: marked red.",
    )


def _timeline(axes: Axes, second: bool) -> None:
    starts = [0.0, 0.0]
    for tile in (0, 1):
        loaded = [start + _LOAD for start in starts]
        barrier = max(loaded) + 0.15
        for warp in (0, 1):
            y = 1 - warp
            _span(axes, starts[warp], loaded[warp], y, style.SKY, f"load {tile}")
            if tile == 0:
                _span(axes, barrier + 0.15, barrier + 0.15 + _COMPUTE[warp], y, style.GREEN, f"compute with tile {tile}")
        axes.axvline(barrier, color=style.INK, linewidth=2)
        if tile == 1:
            break
        ends = [barrier + 0.15 + time for time in _COMPUTE]
        if second:
            axes.axvline(max(ends) + 0.15, color=style.INK, linewidth=2)
            starts = [max(ends) + 0.3] * 2
        else:
            axes.add_patch(Rectangle((ends[0], -0.42), _LOAD, 1.84, facecolor=style.RED, alpha=0.35))
            starts = ends
    axes.set_yticks([1, 0], ["warp 0", "warp 1"])
    axes.set_xticks([])
    axes.set_xlim(0, 10.8)
    axes.set_ylim(-0.6, 1.6)


def _span(axes: Axes, start: float, end: float, y: float, colour: str, text: str) -> None:
    axes.add_patch(Rectangle((start, y - 0.34), end - start, 0.68, facecolor=colour, edgecolor=style.PAPER, alpha=0.85))
    axes.text((start + end) / 2, y, text, ha="center", va="center", fontsize=8)


def causal_tile_counts(seq: int, block: int, tile: int) -> tuple[int, int, int]:
    """Under a causal mask, in tiles of `block` queries by `tile` keys: tiles with a visible score, all tiles, hidden scores in the former."""
    blocks, across = math.ceil(seq / block), math.ceil(seq / tile)
    visited = hidden = 0
    for first in range(0, seq, block):
        last = min(seq, first + block)
        tiles = math.ceil(last / tile)
        visited += tiles
        hidden += sum(min(seq, tiles * tile) - (query + 1) for query in range(first, last))
    return visited, blocks * across, hidden


@style.look()
def causal_tiles(seq: int = 24, block: int = 8, tile: int = 4) -> style.Picture:
    """The causal mask in tiles of `block` queries by `tile` keys: skipped, computed, and computed in vain above the diagonal."""
    query, key = torch.arange(seq)[:, None], torch.arange(seq)[None, :]
    last_query = ((query // block + 1) * block - 1).clamp(max=seq - 1)
    state = torch.where(key <= query, 1, torch.where(key // tile * tile <= last_query, 2, 0))
    figure, axes = style.figure(width=5.4, height=3.3)
    axes.imshow(state.numpy(), cmap=ListedColormap([style.LIGHT, style.BLUE, style.RED]), vmin=0, vmax=2)
    for edge in range(0, seq + block, block):
        axes.axhline(edge - 0.5, color=style.PAPER, linewidth=1.5)
    for edge in range(0, seq + tile, tile):
        axes.axvline(edge - 0.5, color=style.PAPER, linewidth=1.5)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    axes.set_xticks(range(0, seq, tile))
    axes.set_yticks(range(0, seq, block))
    for colour, text in ((style.BLUE, "visible"), (style.RED, "computed, then masked"), (style.LIGHT, "tile skipped")):
        axes.plot([], [], "s", color=colour, label=text, markersize=8)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    visited, tiles, hidden = causal_tile_counts(seq, block, tile)
    return style.picture(
        figure,
        f"{seq} queries by {seq} keys in tiles of {block} queries by {tile} keys: {visited} of {tiles} tiles hold a visible score, the others "
        f"are skipped. Along the diagonal {hidden} scores are computed and then masked.",
    )


def _stack(scores: Sequence[float], shares: torch.Tensor) -> torch.Tensor:
    """Each key's share of the sum and of the output, measured against the largest of `scores`."""
    weights = torch.tensor(scores).sub(max(scores)).exp()
    return weights[:, None] * shares


def _box(axes: Axes, x: float, y: float, width: float, height: float, colour: str, alpha: float) -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, alpha=alpha, edgecolor=style.PAPER, linewidth=1.2))
