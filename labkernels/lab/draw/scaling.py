"""Pictures of several GPUs: a ring's steps, what each GPU holds, an FFN in two halves, loss curves of different ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

from labkernels.lab import style

PARTS = {  # of what a GPU holds: label, colour
    "weights": ("weights", style.BLUE),
    "gradients": ("gradients", style.RED),
    "masters": ("float32 masters", style.SKY),
    "moments": ("AdamW's moments", style.ORANGE),
    "together": ("blocks put together", style.GREEN),
}


@style.look()
def ring_all_reduce(count: int = 4) -> style.Picture:
    """The pieces of every rank after each step of a reduce-scatter and of an all-gather around a ring; in a piece, whose numbers are in it."""
    figure, panels = style.figure(2, count, width=7.4, height=4.3)
    held = [[{rank} for _ in range(count)] for rank in range(count)]
    _pieces(panels[0][0], held, "at first")
    for step in range(count - 1):
        sent = {rank: (rank - step - 1) % count for rank in range(count)}
        before = [[set(piece) for piece in row] for row in held]
        for rank in range(count):
            held[(rank + 1) % count][sent[rank]] |= before[rank][sent[rank]]
        _pieces(panels[0][step + 1], held, f"reduce-scatter {step + 1}", {((rank + 1) % count, piece) for rank, piece in sent.items()})
    for step in range(count - 1):
        sent = {rank: (rank - step) % count for rank in range(count)}
        before = [[set(piece) for piece in row] for row in held]
        for rank in range(count):
            held[(rank + 1) % count][sent[rank]] = before[rank][sent[rank]]
        _pieces(panels[1][step], held, f"all-gather {step + 1}", {((rank + 1) % count, piece) for rank, piece in sent.items()})
    _ring(panels[1][count - 1], count)
    return style.picture(
        figure,
        f"{count} ranks, each with {count} pieces of numbers. In {count - 1} steps each rank sends a piece to the next one, which adds it to its own: then "
        f"rank r has the sum of piece r. In {count - 1} more steps the sums are passed on, and all ranks have all of them.",
    )


def _pieces(axes, held: Sequence[Sequence[set]], title: str, arrived=frozenset()) -> None:
    count = len(held)
    for rank, row in enumerate(held):
        for piece, whose in enumerate(row):
            whole = len(whose) == count
            colour = style.GREEN if whole else style.BLUE
            new = (rank, piece) in arrived
            fill = {"facecolor": colour, "alpha": 0.12 + 0.5 * (len(whose) - 1) / (count - 1)}
            axes.add_patch(Rectangle((piece, rank), 0.94, 0.9, linewidth=0, **fill))
            edge = {"edgecolor": style.ORANGE, "linewidth": 2} if new else {"edgecolor": style.GREY, "linewidth": 0.5}
            axes.add_patch(Rectangle((piece, rank), 0.94, 0.9, fill=False, **edge))
            axes.text(piece + 0.47, rank + 0.45, "".join(map(str, sorted(whose))), ha="center", va="center", fontsize=7.5)
        axes.text(-0.15, rank + 0.45, str(rank), ha="right", va="center", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.set_xlim(-0.6, count)
    axes.set_ylim(count, -0.1)
    axes.axis("off")


def _ring(axes, count: int) -> None:
    from math import cos, pi, sin

    places = [(sin(2 * pi * rank / count), cos(2 * pi * rank / count)) for rank in range(count)]
    for rank, (x, y) in enumerate(places):
        axes.add_patch(Circle((x, y), 0.28, facecolor=style.BLUE, alpha=0.25, edgecolor=style.BLUE))
        axes.text(x, y, str(rank), ha="center", va="center", fontsize=9)
        next_place = places[(rank + 1) % count]
        arrow = {"arrowstyle": "-|>", "mutation_scale": 9, "color": style.ORANGE, "shrinkA": 12, "shrinkB": 12, "connectionstyle": "arc3,rad=-0.25"}
        axes.add_patch(FancyArrowPatch((x, y), next_place, **arrow))
    axes.set_title("who sends to whom", fontsize=9)
    axes.set_xlim(-1.6, 1.6)
    axes.set_ylim(-1.6, 1.6)
    axes.set_aspect("equal")
    axes.axis("off")


@style.look()
def memory_per_rank(estimates: Mapping[str, Mapping[str, float]], limit_gb: float | None = None) -> style.Picture:
    """Bars of what each GPU holds, one for each way to share; as of labkernels.llm.parallel.traffic.memory_per_rank."""
    figure, axes = style.figure(height=0.9 + 0.42 * len(estimates))
    for row, parts in enumerate(estimates.values()):
        left = 0.0
        for part, (label, colour) in PARTS.items():
            axes.barh(row, parts.get(part, 0) / 1e9, left=left, color=colour, alpha=0.85, label=label if row == 0 else None, height=0.65)
            left += parts.get(part, 0) / 1e9
    if limit_gb:
        axes.axvline(limit_gb, color=style.LIMIT, linestyle="--", linewidth=1)
        axes.text(limit_gb, len(estimates) - 1, f"{limit_gb:g} GB ", va="center", ha="right", fontsize=9)
    axes.set_yticks(range(len(estimates)), list(estimates))
    axes.invert_yaxis()
    axes.set_xlabel("GB on each GPU, before the first token")
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.32), fontsize=8.5)
    told = "; ".join(f"{name}: {sum(parts.values()) / 1e9:.1f}" for name, parts in estimates.items())
    return style.picture(figure, f"GB that each GPU holds: {told}.")


@style.look()
def split_ffn(count: int = 2) -> style.Picture:
    """A gated FFN over ranks: rows of gates and ups, columns of the projection back, and a sum at the end."""
    figure, axes = style.figure(height=2.7)
    colours = style.SERIES[:count]

    def matrix(x: float, y: float, width: float, height: float, name: str, by_rows: bool) -> None:
        for rank, colour in enumerate(colours):
            rows = (x, y + height * (count - 1 - rank) / count, width, height / count)
            part = rows if by_rows else (x + width * rank / count, y, width / count, height)
            axes.add_patch(Rectangle(part[:2], *part[2:], facecolor=colour, alpha=0.35, edgecolor="white"))
            axes.text(part[0] + part[2] / 2, part[1] + part[3] / 2, f"rank {rank}", ha="center", va="center", fontsize=8)
        axes.text(x + width / 2, y + height + 0.08, name, ha="center", va="bottom", fontsize=9)

    axes.text(0.35, 1.2, "x\non all", ha="center", va="center", fontsize=9)
    matrix(1.2, 1.4, 1.3, 0.9, "gates", True)
    matrix(1.2, 0.0, 1.3, 0.9, "ups", True)
    matrix(4.2, 0.7, 1.8, 0.9, "back", False)
    axes.text(3.35, 1.15, "silu(gate) · up,\na part on each", ha="center", va="center", fontsize=9)
    axes.text(7.3, 1.15, "all-reduce:\nthe sum of all,\non all", ha="center", va="center", fontsize=9)
    for start, end in (((0.6, 1.25), (1.15, 1.8)), ((0.6, 1.15), (1.15, 0.5)), ((2.55, 1.8), (2.9, 1.4)), ((2.55, 0.5), (2.9, 0.95)),
                       ((3.9, 1.15), (4.15, 1.15)), ((6.05, 1.15), (6.55, 1.15))):  # fmt: skip
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=style.INK))
    axes.set_xlim(0, 8.1)
    axes.set_ylim(-0.1, 2.65)
    axes.axis("off")
    return style.picture(
        figure,
        f"x is on all {count} ranks. Each has some rows of the gates and the same rows of the ups, makes its part of silu(gate) times up, multiplies it by the "
        "columns of the matrix back that belong to it, and a sum over all ranks ends the layer.",
    )


@style.look()
def loss_by_mode(curves: Mapping[str, Sequence[float]]) -> style.Picture:
    """Loss by step, a line for each way to share, drawn so that lines on top of each other are seen."""
    figure, axes = style.figure(height=2.4)
    for number, (name, losses) in enumerate(curves.items()):
        width = 2 + 3 * (len(curves) - 1 - number)
        axes.plot(range(len(losses)), losses, color=style.SERIES[number], linewidth=width, alpha=0.75, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    told = "; ".join(f"{name} from {losses[0]:.2f} to {losses[-1]:.2f}" for name, losses in curves.items())
    return style.picture(figure, f"Loss by step: {told}. The lines lie on each other.")
