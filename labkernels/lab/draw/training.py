"""Pictures of training: one step and what it keeps, schedules, where memory goes, singular values under Newton-Schulz, the ablation ladder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib.patches import FancyArrowPatch, Rectangle

from labkernels.lab import style

PARTS = {  # of the memory of a training step: label, colour
    "weights": ("weights", style.BLUE),
    "master": ("float32 masters", style.SKY),
    "optimizer": ("AdamW's moments", style.ORANGE),
    "gradients": ("gradients", style.RED),
    "activations": ("activations", style.GREEN),
    "loss": ("loss", style.PURPLE),
    "workspace": ("workspace", style.GREY),
}


@style.look()
def training_step(blocks: int = 3) -> style.Picture:
    """One step: forward through the blocks, each of which keeps something, backward through them in reverse, then the optimiser."""
    figure, axes = style.figure(height=2.5)
    names = ["embedding", *(f"block {i + 1}" for i in range(blocks)), "head, loss"]
    for place, name in enumerate(names):
        x = place * 1.5
        axes.add_patch(Rectangle((x, 1.6), 1.1, 0.5, facecolor=style.BLUE, alpha=0.25, edgecolor=style.BLUE))
        axes.text(x + 0.55, 1.85, name, ha="center", va="center", fontsize=9)
        axes.add_patch(Rectangle((x, 0.0), 1.1, 0.5, facecolor=style.RED, alpha=0.2, edgecolor=style.RED))
        axes.text(x + 0.55, 0.25, "gradients", ha="center", va="center", fontsize=9)
        axes.add_patch(FancyArrowPatch((x + 0.55, 1.6), (x + 0.55, 0.5), arrowstyle="-|>", mutation_scale=9, color=style.GREEN, linewidth=2))
        if place:
            axes.add_patch(FancyArrowPatch((x - 0.4, 1.85), (x, 1.85), arrowstyle="-|>", mutation_scale=9, color=style.INK))
            axes.add_patch(FancyArrowPatch((x, 0.25), (x - 0.4, 0.25), arrowstyle="-|>", mutation_scale=9, color=style.INK))
    axes.text(0.63, 1.05, "kept: activations", fontsize=9, color=style.GREEN, va="center")
    axes.text(-0.15, 1.85, "forward", ha="right", va="center")
    axes.text(-0.15, 0.25, "backward", ha="right", va="center")
    axes.text((len(names) * 1.5 - 0.4) / 2, -0.5, "then the optimiser: every weight, by its gradient and its moments", ha="center", va="center", fontsize=9)
    axes.set_xlim(-1.2, len(names) * 1.5)
    axes.set_ylim(-0.8, 2.3)
    axes.axis("off")
    return style.picture(
        figure,
        f"A row of {len(names)} boxes from the embedding through {blocks} blocks to head and loss, with arrows forward. Below it a row of gradients, with arrows "
        "back. From each box above an arrow leads to the one below: the activations that it keeps until the backward pass comes by.",
    )


@style.look()
def learning_rates(schedules: Mapping[str, Callable[[int], float]], steps: int) -> style.Picture:
    """Learning rates by step, as shares of the highest."""
    figure, axes = style.figure(height=2.3)
    for name, schedule in schedules.items():
        axes.plot(range(steps), [schedule(step) for step in range(steps)], label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("share of the highest")
    axes.set_ylim(0, 1.08)
    axes.legend()
    ends = "; ".join(f"{name} from {schedule(0):.2g} to {schedule(steps - 1):.2g}" for name, schedule in schedules.items())
    return style.picture(figure, f"The learning rate over {steps} steps: {ends}.")


@style.look()
def training_memory(estimates: Mapping[str, Mapping[str, int]], limit_gb: float | None = None) -> style.Picture:
    """Bars of a training step's bytes by part, one for each way to train; as of labkernels.llm.estimate.training_memory."""
    figure, axes = style.figure(height=0.9 + 0.42 * len(estimates))
    rows = list(estimates)
    for row, name in enumerate(rows):
        left = 0.0
        for part, (label, colour) in PARTS.items():
            size = estimates[name].get(part, 0) / 1e9
            axes.barh(row, size, left=left, color=colour, alpha=0.85, label=label if row == 0 else None, height=0.65)
            left += size
    if limit_gb:
        axes.axvline(limit_gb, color=style.LIMIT, linestyle="--", linewidth=1)
        axes.text(limit_gb, 0, f"{limit_gb:g} GB ", va="center", ha="right", fontsize=9)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlabel("GB")
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.45, -0.32 if len(rows) < 4 else -0.2), fontsize=8.5)
    told = "; ".join(f"{name}: {', '.join(f'{part} {size / 1e9:.1f}' for part, size in parts.items() if size)}" for name, parts in estimates.items())
    return style.picture(figure, f"Memory of a training step in GB. {told}.")


@style.look()
def singular_values(steps: Sequence[torch.Tensor]) -> style.Picture:
    """The singular values of a matrix before and after each step of an iteration."""
    figure, axes = style.figure(height=2.6)
    found = [torch.linalg.svdvals(matrix.float()) for matrix in steps]
    middle, labelled = len(found[0]) // 2, 3 * len(found[0]) // 4
    for step, values in enumerate(found):
        axes.plot(range(1, len(values) + 1), values, color=style.OURS, alpha=0.25 + 0.75 * step / max(1, len(found) - 1))
        axes.text(labelled, float(values[labelled - 1]), f"{step} steps" if step != 1 else "1 step", fontsize=9, ha="center", va="center", bbox=_CLEAR)
    axes.axhline(1.0, color=style.LIMIT, linestyle="--", linewidth=1)
    axes.set_xlabel("which singular value, the largest first")
    axes.set_ylabel("singular value")
    lowest = max(1e-6, float(found[0][int(0.9 * (len(found[0]) - 1))]))
    style.ratio_axis(axes, "y", [tick for tick in (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6) if tick >= lowest / 10], lambda value: f"{value:g}")
    axes.set_ylim(lowest, 3)
    return style.picture(
        figure,
        f"Singular values of a matrix after 0 to {len(found) - 1} steps: the middle one grows from "
        f"{found[0][middle - 1]:.2g} to {found[-1][middle - 1]:.2g}, the largest from {found[0].max():.2f} to {found[-1].max():.2f}.",
    )


_CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # behind a label: lines end at it


@style.look()
def ablation(frame) -> style.Picture:
    """The rows of training.csv as bars of tokens/s, Hugging Face's in the peers' colour, the best of these as a line."""
    rows = frame[frame["tokens_per_s"].notna()]
    figure, axes = style.figure(height=0.8 + 0.3 * len(rows))
    theirs = rows["row"].str.startswith("hf_")
    axes.barh(range(len(rows)), rows["tokens_per_s"] / 1000, color=[style.PEER if peer else style.OURS for peer in theirs], height=0.7)
    for place, (rate, share) in enumerate(zip(rows["tokens_per_s"], rows["mfu"])):
        text, where = f"{rate / 1000:.0f}k, MFU {100 * share:.0f}%", (rate / 1000, place)
        axes.annotate(text, where, (4, 0), textcoords="offset points", va="center", fontsize=8.5, bbox=_CLEAR)
    if theirs.any():
        axes.axvline(rows["tokens_per_s"][theirs].max() / 1000, color=style.LIMIT, linestyle="--", linewidth=1, zorder=2)
    axes.set_yticks(range(len(rows)), rows["row"])
    axes.invert_yaxis()
    axes.set_xlim(0, rows["tokens_per_s"].max() / 1000 * 1.25)
    axes.set_xlabel("thousand tokens a second; dashed: the best of Hugging Face's" if theirs.any() else "thousand tokens a second")
    told = "; ".join(f"{row} {rate / 1000:.0f}k" for row, rate in zip(rows["row"], rows["tokens_per_s"]))
    return style.picture(figure, f"Tokens a second of each row of the ladder: {told}.")
