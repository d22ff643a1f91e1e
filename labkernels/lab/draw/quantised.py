"""Pictures of quantised weights: levels on a number line, nibbles in a word, and error against bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.patches import Rectangle

from labkernels.lab import style
from labkernels.quant.formats import NF4, PACK_ORDER


@style.look()
def weight_levels(count: int = 128, seed: int = 0) -> style.Picture:
    """A group of normally distributed weights, and the 16 levels that int4 and NF4 round them to."""
    if count < 2:
        raise ValueError(f"weight_levels: count is {count}; it must be at least 2")
    weights = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = weights.min().clamp(max=0), weights.max().clamp(min=0)
    scale = (high - low) / 15
    even = (scale * (torch.arange(16) - torch.round(-low / scale))).tolist()  # 0 is one of them
    normal = (weights.abs().max() * torch.tensor(NF4, dtype=torch.float64)).tolist()
    figure, axes = style.figure(height=2.5)
    axes.plot(weights.tolist(), [2] * count, "|", color=style.INK, markersize=16)
    for y, levels, colour in ((1, even, style.BLUE), (0, normal, style.GREEN)):
        axes.plot(levels, [y] * 16, "|", color=colour, markersize=22, markeredgewidth=2.5)
    axes.set_yticks([2, 1, 0], [f"{count} weights", "int4: evenly,\n0 among them", "NF4: as normal\nnumbers lie"])
    axes.set_ylim(-0.6, 2.6)
    axes.set_xlabel("weight")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return style.picture(
        figure,
        f"Three rows of marks on a number line. Top: {count} weights, densest around 0. Middle: 16 evenly spaced levels of int4 from {even[0]:.2f} to {even[-1]:.2f}, 0 among them. "
        f"Bottom: 16 levels of NF4, close together around 0 and far apart at the ends, from {normal[0]:.2f} to {normal[-1]:.2f}.",
    )


@style.look()
def packed_word() -> style.Picture:
    """Eight 4-bit numbers in a 32-bit word, in the order in which one mask gives two neighbours, each in its half word."""
    figure, axes = style.figure(height=2.4)
    for nibble, which in enumerate(PACK_ORDER):
        x = 7 - nibble
        chosen = nibble in (1, 5)
        axes.add_patch(Rectangle((x, 1.2), 0.96, 0.6, facecolor=style.SERIES[which // 2], alpha=0.85 if chosen else 0.35))
        axes.text(x + 0.48, 1.5, f"k = {which}", ha="center", va="center", fontsize=9)
        axes.text(x + 0.48, 2.0, f"bits {4 * nibble}-{4 * nibble + 3}", ha="center", va="center", fontsize=8, color=style.GREY)
        shifted = nibble - 1
        if shifted >= 0:
            keeps = shifted in (0, 4)
            axes.add_patch(Rectangle((7 - shifted, 0.1), 0.96, 0.6, facecolor=style.SERIES[which // 2] if keeps else style.PAPER, alpha=0.85 if keeps else 1, edgecolor=style.LIGHT))
            axes.text(7 - shifted + 0.48, 0.4, f"k = {which}" if keeps else "0", ha="center", va="center", fontsize=9, color=style.INK if keeps else style.GREY)
    axes.add_patch(Rectangle((0, 0.1), 0.96, 0.6, facecolor=style.PAPER, edgecolor=style.LIGHT))
    axes.text(0.48, 0.4, "0", ha="center", va="center", fontsize=9, color=style.GREY)
    axes.text(-0.15, 1.5, "word", ha="right", va="center", fontsize=9)
    axes.text(-0.15, 0.4, "(word >> 4)\n& 0x000f000f", ha="right", va="center", fontsize=9, family="monospace")
    axes.set_xlim(-2.3, 8.1)
    axes.set_ylim(-0.05, 2.2)
    axes.axis("off")
    return style.picture(
        figure,
        "A word of eight nibbles; from the lowest they hold k = 0, 2, 4, 6, 1, 3, 5, 7. Below it the word shifted by 4 and masked with 000f000f, hexadecimal: k = 2 in the lower "
        "half word, k = 3 in the upper one, and zeros elsewhere.",
    )


@style.look()
def error_by_bits(rows: Sequence[tuple[str, str, float, float]]) -> style.Picture:
    """Error of the output against bits a weight: rows of (scheme, quantiser, bits, error)."""
    if not rows:
        raise ValueError("error_by_bits: give rows of (scheme, quantiser, bits, error)")
    figure, axes = style.figure(height=3.2)
    markers = {"nearest": "o", "mse": "s", "gptq": "^"}
    schemes = list(dict.fromkeys(scheme for scheme, *_ in rows))
    for scheme, quantiser, bits, error in rows:
        colour = style.SERIES[schemes.index(scheme) % len(style.SERIES)]
        hollow = "none" if quantiser == "mse" else colour  # what it lies on shows through
        axes.plot([bits], [error], markers.get(quantiser, "x"), color=colour, markerfacecolor=hollow, markersize=8 if quantiser == "mse" else 6, markeredgewidth=1.5)
    for scheme in schemes:
        axes.add_patch(Rectangle((0, 0), 0, 0, color=style.SERIES[schemes.index(scheme) % len(style.SERIES)], label=scheme))
    for quantiser, marker in markers.items():
        if any(row[1] == quantiser for row in rows):
            axes.plot([], [], marker, color=style.INK, markerfacecolor="none" if quantiser == "mse" else style.INK, linestyle="none", label=quantiser)
    axes.set_yscale("log")
    axes.set_xlabel("bits a weight, scales included")
    axes.set_ylabel("relative error of the output")
    axes.grid(True, axis="y")
    axes.legend(ncols=2)
    listed = "; ".join(f"{scheme} {quantiser} {bits:.2f} bits {error:.3g}" for scheme, quantiser, bits, error in rows)
    return style.picture(figure, f"Points: bits a weight along the x axis, error of the output, on a logarithmic axis, along y. {listed}.")
