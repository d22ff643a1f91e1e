"""Pictures of the feed-forward network: what travels between its steps, and one kernel for both products."""

from __future__ import annotations

from matplotlib.patches import FancyArrowPatch, Rectangle

from labkernels.lab import style


@style.look()
def ffn_trips() -> style.Picture:
    """The hidden matrix of a feed-forward network: its trips through memory with separate operations, and with an epilogue."""
    figure, axes = style.figure(height=2.7)
    rows = (("separate", ("product + bias", "GELU", "product")), ("epilogue", ("product + bias, GELU", "product")))
    for y, (name, steps) in zip((1.5, 0.0), rows):
        axes.text(-0.2, y + 0.35, name, ha="right", va="center")
        left = 0.0
        for index, step in enumerate(steps):
            width = {1: 1.4, 3: 2.1}.get(len(step.split()), 2.9)
            axes.add_patch(Rectangle((left, y + 0.1), width, 0.5, facecolor=style.GREEN, alpha=0.35, edgecolor=style.GREEN))
            axes.text(left + width / 2, y + 0.35, step, ha="center", va="center", fontsize=9)
            left += width
            if index + 1 < len(steps):
                axes.add_patch(FancyArrowPatch((left + 0.05, y + 0.35), (left + 0.95, y + 0.35), arrowstyle="-|>", mutation_scale=14, color=style.ORANGE, linewidth=3, shrinkA=0, shrinkB=0))
                axes.text(left + 0.5, y + 0.66, "hidden", ha="center", va="center", fontsize=8.5)
                left += 1.0
    axes.text(3.6, -0.45, "orange: written to memory, and read again", ha="center", fontsize=9, va="center")
    axes.set_xlim(-1.6, 7.4)
    axes.set_ylim(-0.7, 2.4)
    axes.axis("off")
    return style.picture(
        figure,
        "Two rows of boxes. Separate operations: product with bias, GELU, product, with the hidden matrix written and read between each two, twice. "
        "With an epilogue: one box for product, bias and GELU, and one for the second product; the hidden matrix travels once.",
    )


@style.look()
def ffn_slices(blocks: int = 4) -> style.Picture:
    """Both products in one kernel: each block has a slice of the hidden columns, whose share of the result it computes."""
    if not 1 <= blocks <= len(style.SERIES):
        raise ValueError(f"ffn_slices: blocks is {blocks}; it must be from 1 to {len(style.SERIES)}")
    figure, axes = style.figure(height=3.0)
    step = 2.6 / blocks

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=style.INK, shrinkA=0, shrinkB=0))

    for left, name in ((0.0, "x"), (10.9, "y")):
        axes.add_patch(Rectangle((left, 1.15), 1.6, 0.3, facecolor=style.GREY, alpha=0.6))
        axes.text(left + 0.8, 1.62, name, ha="center", va="center")
    columns = ((2.7, 1.6, 0.8, "w1, its slice"), (4.9, 0.8, 0.35, "hidden"), (6.3, 1.6, 0.8, "w2, its slice"), (8.5, 1.6, 0.35, "share of y"))
    for block in range(blocks):
        colour, middle = style.SERIES[block], 2.6 - (block + 0.5) * step
        for left, width, height, _ in columns:
            high = height * min(step, 0.65)
            axes.add_patch(Rectangle((left, middle - high / 2), width, high, facecolor=colour, alpha=0.45 if height > 0.5 else 0.9))
        axes.text(3.5, middle, f"block {block}", ha="center", va="center", fontsize=8.5)
        arrow((1.65, 1.3), (2.6, middle))
        for (left, width, *_), (after, *_) in zip(columns, columns[1:]):
            arrow((left + width + 0.05, middle), (after - 0.05, middle))
        arrow((10.15, middle), (10.85, 1.3))
    for left, width, _, name in columns:
        axes.text(left + width / 2, 2.85, name, ha="center", va="center", fontsize=9)
    axes.text(5.3, -0.2, "never in memory", ha="center", va="center", fontsize=8.5)
    axes.set_xlim(-0.1, 12.6)
    axes.set_ylim(-0.35, 3.05)
    axes.axis("off")
    return style.picture(
        figure,
        f"x goes to {blocks} blocks, each with its slice of w1 and of w2, in {blocks} colours. From x and its slice of w1 a block makes a short piece of the hidden row, "
        "which is never in memory, and from that and its slice of w2 a share of y as long as y itself. The shares are added up to y.",
    )
