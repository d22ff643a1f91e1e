"""Pictures of the whole model: a block and its residual stream, how heads lie in one projection, who the parameters are, packed documents."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.patches import FancyArrowPatch, Rectangle

from labkernels.lab import style


@style.look()
def decoder_block() -> style.Picture:
    """One block: two branches leave the residual stream, and what they make is added to it."""
    figure, axes = style.figure(height=2.5)

    def arrow(start: tuple[float, float], end: tuple[float, float], colour: str = style.INK) -> None:
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=colour, shrinkA=0, shrinkB=0))

    axes.plot([-1.3, 13.2], [0, 0], color=style.BLUE, linewidth=5, solid_capstyle="butt", zorder=1)
    axes.text(-1.3, -0.3, "residual stream", fontsize=9, va="center", color=style.BLUE)
    for left, name, work in ((0.0, "attention", style.ORANGE), (6.6, "FFN", style.GREEN)):
        for at, width, label, colour in ((left + 0.4, 1.5, "RMSNorm", style.GREY), (left + 2.5, 2.1, name, work)):
            axes.add_patch(Rectangle((at, 1.05), width, 0.6, facecolor=colour, alpha=0.4, edgecolor=colour))
            axes.text(at + width / 2, 1.35, label, ha="center", va="center", fontsize=9)
        axes.plot([left, left], [0, 1.35], color=style.INK, linewidth=1.2)
        arrow((left, 1.35), (left + 0.4, 1.35))
        arrow((left + 1.9, 1.35), (left + 2.5, 1.35))
        axes.plot([left + 4.6, left + 5.4], [1.35, 1.35], color=style.INK, linewidth=1.2)
        arrow((left + 5.4, 1.35), (left + 5.4, 0.22))
        axes.text(left + 5.4, 0, "+", ha="center", va="center", fontsize=13, color=style.PAPER, zorder=3, bbox={"boxstyle": "circle", "facecolor": style.BLUE, "edgecolor": style.BLUE})
    axes.set_xlim(-1.4, 13.3)
    axes.set_ylim(-0.5, 1.9)
    axes.axis("off")
    return style.picture(
        figure,
        "A thick line from left to right, the residual stream. A branch leaves it, passes RMSNorm and attention and is added to the line; further on a second branch "
        "passes RMSNorm and the FFN and is added, too. Nothing stands on the line itself but the two additions.",
    )


@style.look()
def stacked_projection(heads: int = 4, kv_heads: int = 2) -> style.Picture:
    """A token's row of the stacked projection, head by head, and which queries share which keys."""
    if not 1 <= kv_heads <= min(heads, len(style.SERIES)) or heads % kv_heads:
        raise ValueError(f"stacked_projection: heads is {heads}, kv_heads is {kv_heads}; the first must be a multiple of the second, which is at most {len(style.SERIES)}")
    figure, axes = style.figure(height=1.7)
    group, total = heads // kv_heads, heads + 2 * kv_heads
    for index in range(total):
        kind, number = ("q", index) if index < heads else ("k", index - heads) if index < heads + kv_heads else ("v", index - heads - kv_heads)
        colour = style.SERIES[number // group if kind == "q" else number]
        axes.add_patch(Rectangle((index, 0), 0.94, 0.7, facecolor=colour, alpha=0.3 if kind == "q" else 0.75))
        axes.text(index + 0.47, 0.35, f"{kind}{number}", ha="center", va="center", fontsize=10)
    for first, count, name in ((0, heads, "heads of queries"), (heads, kv_heads, "of keys"), (heads + kv_heads, kv_heads, "of values")):
        axes.plot([first, first + count - 0.06], [0.85, 0.85], color=style.INK, linewidth=1.2)
        axes.text(first + count / 2, 1.05, name, ha="center", va="center", fontsize=9)
    axes.text(0, -0.25, "each head_dim numbers wide; one token's row, as it lies in memory", fontsize=9, va="center")
    axes.set_xlim(-0.1, total)
    axes.set_ylim(-0.45, 1.25)
    axes.axis("off")
    return style.picture(
        figure,
        f"A row of {total} boxes: {heads} heads of queries, then {kv_heads} of keys, then {kv_heads} of values. Colours show the groups: "
        f"each head of keys and of values has the colour of the {group} heads of queries that share it.",
    )


@style.look()
def parameter_budget(names: Sequence[str] = ("10m", "645m", "llama-3.2-1b", "llama-3-8b", "llama-3-70b")) -> style.Picture:
    """The shares of embedding, attention, FFN and head in the parameters of presets."""
    from labkernels.llm.config import ModelConfig
    from labkernels.llm.estimate import parameter_table

    figure, axes = style.figure(height=0.9 + 0.42 * len(names))
    parts = {"embedding": style.SKY, "attention": style.ORANGE, "ffn": style.GREEN, "head": style.PURPLE}
    told = []
    for row, name in enumerate(names):
        table = parameter_table(ModelConfig.preset(name))
        total, left = sum(table.values()), 0.0
        for part, colour in parts.items():
            share = 100 * table[part] / total
            axes.barh(row, share, left=left, color=colour, alpha=0.8, height=0.7, label=("FFN" if part == "ffn" else part) if row == 0 else None)
            if share > 6:
                axes.text(left + share / 2, row, f"{share:.0f}", ha="center", va="center", fontsize=9)
            left += share
        size = f"{total / 1e9:.2f} B" if total >= 1e9 else f"{total / 1e6:.0f} M"
        axes.text(101, row, size, va="center", fontsize=9)
        told.append(f"{name}, {size}: " + ", ".join(f"{part} {100 * table[part] / total:.0f}%" for part in parts))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 112)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_xlabel("share of the parameters, %")
    figure.legend(loc="outside upper center", ncols=len(parts), fontsize=9)
    return style.picture(figure, "Bars of shares of the parameters, one a model. " + "; ".join(told) + ".")


@style.look()
def packed_documents(lengths: Sequence[int] = (3, 5, 4)) -> style.Picture:
    """Documents in one row: positions that begin again, and the pairs of tokens that see each other."""
    if not 1 <= len(lengths) <= len(style.SERIES) or min(lengths) < 1:
        raise ValueError(f"packed_documents: lengths has {len(lengths)} documents; it must have 1 to {len(style.SERIES)}, none of them empty")
    total = sum(lengths)
    document = [number for number, length in enumerate(lengths) for _ in range(length)]
    position = [place for length in lengths for place in range(length)]
    figure, axes = style.figure(width=4.6, height=3.6)
    for token in range(total):
        axes.add_patch(Rectangle((token, -1.5), 0.92, 0.8, facecolor=style.SERIES[document[token]], alpha=0.35))
        axes.text(token + 0.46, -1.1, str(position[token]), ha="center", va="center", fontsize=9)
        for key in range(token + 1):
            same = document[key] == document[token]
            axes.add_patch(Rectangle((key, token), 0.92, 0.92, facecolor=style.SERIES[document[token]] if same else style.LIGHT, alpha=0.75 if same else 0.6))
    axes.text(-0.3, -1.1, "position", ha="right", va="center", fontsize=9)
    axes.text(-0.3, total / 2, "query", ha="right", va="center", fontsize=9)
    axes.text(total / 2, total + 0.6, "key", ha="center", va="center", fontsize=9)
    axes.set_xlim(-2.2, total + 0.1)
    axes.set_ylim(total + 1, -1.7)
    axes.set_aspect("equal")
    axes.axis("off")
    spans = ", ".join(map(str, lengths))
    return style.picture(
        figure,
        f"A row of {total} tokens from {len(lengths)} documents of {spans} tokens; their positions count from 0 in each. Below, a lower triangle of pairs: coloured within "
        "a document, grey where a query's key belongs to another one and is not seen.",
    )
