"""Pictures of sampling: temperature, the nucleus, and a threshold that is found bit by bit."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from matplotlib.patches import Rectangle

from labkernels.lab import style

LOGITS = (3.0, 2.4, 1.9, 1.0, 0.2, -0.3, -1.0)


@style.look()
def temperatures(logits: Sequence[float] = LOGITS, values: Sequence[float] = (0.5, 1.0, 2.0)) -> style.Picture:
    """The probabilities of the same logits at several temperatures."""
    if not values or min(values) <= 0:
        raise ValueError("temperatures: every temperature must be above 0")
    figure, panels = style.figure(1, len(values), height=2.2, sharey=True, squeeze=False)
    firsts = []
    for axes, value in zip(panels[0], values):
        p = (torch.tensor(logits, dtype=torch.float64) / value).softmax(0)
        firsts.append(f"{p[0]:.0%} at {value:g}")
        axes.bar(range(len(p)), p.tolist(), width=0.75, color=style.BLUE)
        axes.set_title(f"temperature {value:g}", fontsize=10)
        axes.set_xlabel("token")
        axes.set_xticks(range(len(p)))
    panels[0][0].set_ylabel("probability")
    return style.picture(figure, f"Bar charts of the probabilities of {len(logits)} tokens. The first token has {', '.join(firsts)}: the higher the temperature, the more alike.")


@style.look()
def nucleus(logits: Sequence[float] = LOGITS, top_p: float = 0.8) -> style.Picture:
    """Probabilities in order, those of the nucleus in colour, and the sum that decides."""
    if not 0 < top_p <= 1:
        raise ValueError(f"nucleus: top_p is {top_p}; it must be above 0 and at most 1")
    p = torch.tensor(logits, dtype=torch.float64).softmax(0).sort(descending=True).values
    sums = p.cumsum(0)
    kept = sums - p < top_p
    figure, axes = style.figure(height=2.6)
    bottoms = (sums - p).tolist()
    axes.bar(range(len(p)), p.tolist(), bottom=bottoms, width=0.75, color=[style.GREEN if one else style.LIGHT for one in kept.tolist()])
    axes.axhline(top_p, color=style.INK, linestyle="--", linewidth=1.4)
    axes.text(len(p) - 0.45, top_p - 0.02, f"top_p = {top_p:g}", ha="right", va="top", fontsize=9)
    axes.set_xticks(range(len(p)))
    axes.set_xlabel("tokens, the most probable first")
    axes.set_ylabel("sum of probabilities")
    axes.set_ylim(0, 1.05)
    axes.legend(handles=_key((style.GREEN, "the nucleus"), (style.LIGHT, "cannot be drawn")), loc="lower right", fontsize=9)
    return style.picture(
        figure,
        f"Stairs: each token's probability on top of those before it, the largest first. A dashed line at {top_p:g}. The first {int(kept.sum())} of {len(p)} tokens, green, "
        "are kept: the last of them crosses the line.",
    )


@style.look()
def bit_search(logits: Sequence[float] = LOGITS, top_p: float = 0.8, steps: int = 12) -> style.Picture:
    """A threshold of probabilities found bit by bit: what each step tries, and whether the bit stays."""
    if not 1 <= steps <= 30:
        raise ValueError(f"bit_search: steps is {steps}; it must be from 1 to 30")
    p = torch.tensor(logits, dtype=torch.float32).softmax(0)
    figure, axes = style.figure(height=2.9)
    threshold, kept, lowest, below = 0, 0, p.min().item() / 2, 0
    for step in range(1, steps + 1):
        bit = 1 << (30 - step)
        tried = _as_float(threshold | bit)
        stays = bool(p[p >= tried].sum() >= top_p)
        if tried < lowest:
            below = step
        else:
            axes.plot([step], [tried], marker="o", color=style.RIGHT if stays else style.WRONG, markersize=7, linestyle="none")
        if stays:
            threshold, kept = threshold | bit, kept + 1
    for value in p.tolist():
        axes.axhline(value, color=style.LIGHT, linewidth=1.2, zorder=0)
        axes.text(1.01, value, f"{value:.3f}", transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=style.GREY)
    axes.axhline(_as_float(threshold), color=style.INK, linestyle="--", linewidth=1.2, zorder=1)
    axes.text(0.5, _as_float(threshold) * 1.08, f"threshold after step {steps}", va="bottom", fontsize=8)
    axes.text(0.5, lowest * 1.15, f"steps 1 to {below}: far below" if below > 1 else "step 1: far below" if below else "", va="bottom", fontsize=8)
    axes.set_yscale("log")
    axes.set_ylim(lowest, 3)
    axes.set_xlim(0.3, steps + 0.5)
    axes.set_xticks(range(1, steps + 1, 1 if steps <= 15 else 2))
    axes.set_xlabel("step: one bit of the threshold, the highest first")
    axes.set_ylabel("threshold tried")
    axes.legend(handles=_key((style.RIGHT, "enough is left: the bit stays"), (style.WRONG, "too little: it goes")), loc="upper right", fontsize=9)
    return style.picture(
        figure,
        f"Dots at the thresholds that {steps} steps try, without the first {below}, which are far smaller: green where the tokens that reach the threshold have at least {top_p:g} of the probability, "
        f"orange where they have not. Grey lines are the tokens' probabilities. {kept} bits stay, and the threshold ends at {_as_float(threshold):.4f}.",
    )


def _key(*entries: tuple[str, str]) -> list[Rectangle]:
    """What a legend shows: a square of each colour, and its text."""
    return [Rectangle((0, 0), 1, 1, color=colour, label=text) for colour, text in entries]


def _as_float(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]
