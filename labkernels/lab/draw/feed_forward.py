"""Pictures of the feed-forward network: what travels between its steps, and one kernel for both products."""

from __future__ import annotations

from matplotlib.patches import FancyArrowPatch, Rectangle

from labkernels.lab import style


@style.look()
def ffn_trips() -> style.Picture:
    """The hidden matrix of a feed-forward network: its trips through memory with separate operations, and with an epilogue."""
    figure, axes = style.figure(height=2.7)
    rows = (("separate", ("product", "+ bias", "GELU", "product")), ("epilogue", ("product, bias, GELU", "product")))
    for y, (name, steps) in zip((1.5, 0.0), rows):
        axes.text(-0.2, y + 0.35, name, ha="right", va="center")
        left = 0.0
        for index, step in enumerate(steps):
            width = 2.9 if "," in step else 1.4
            axes.add_patch(Rectangle((left, y + 0.1), width, 0.5, facecolor=style.GREEN, alpha=0.35, edgecolor=style.GREEN))
            axes.text(left + width / 2, y + 0.35, step, ha="center", va="center", fontsize=9)
            left += width
            if index + 1 < len(steps):
                axes.add_patch(FancyArrowPatch((left + 0.05, y + 0.35), (left + 0.95, y + 0.35), arrowstyle="-|>", mutation_scale=14, color=style.ORANGE, linewidth=3, shrinkA=0, shrinkB=0))
                axes.text(left + 0.5, y + 0.66, "hidden", ha="center", va="center", fontsize=8.5)
                left += 1.0
    axes.text(4.3, -0.45, "orange: written to memory, and read again", ha="center", fontsize=9, va="center")
    axes.set_xlim(-1.6, 9.0)
    axes.set_ylim(-0.7, 2.4)
    axes.axis("off")
    return style.picture(
        figure,
        "Two rows of boxes. Separate operations: product, bias, GELU, product, with the hidden matrix written and read between each two, three times. "
        "With an epilogue: one box for product, bias and GELU, and one for the second product; the hidden matrix travels once.",
    )


@style.look()
def ffn_slices(blocks: int = 4) -> style.Picture:
    """Both products in one kernel: each block has a slice of the hidden columns, whose share of the result it computes."""
    if not 1 <= blocks <= len(style.SERIES):
        raise ValueError(f"ffn_slices: blocks is {blocks}; it must be from 1 to {len(style.SERIES)}")
    figure, axes = style.figure(height=3.0)
    axes.add_patch(Rectangle((0, 2.2), 1.6, 0.3, facecolor=style.GREY, alpha=0.5))
    axes.text(0.8, 2.65, "x", ha="center", va="center")
    for block in range(blocks):
        colour, left, width = style.SERIES[block], 2.6 + block * 3.2 / blocks, 3.2 / blocks - 0.06
        axes.add_patch(Rectangle((left, 0.3), width, 1.5, facecolor=colour, alpha=0.45))
        axes.add_patch(Rectangle((left, 2.2), width, 0.3, facecolor=colour, alpha=0.9))
        y = 1.55 - block * 1.2 / blocks
        axes.add_patch(Rectangle((7.2, y), 1.6, 0.22, facecolor=colour, alpha=0.75))
        axes.add_patch(FancyArrowPatch((left + width / 2, 2.55), (7.1, y + 0.12), arrowstyle="-|>", mutation_scale=9, color=colour, connectionstyle="arc3,rad=-0.25", shrinkA=0, shrinkB=0))
        axes.add_patch(FancyArrowPatch((8.9, y + 0.11), (9.9, 1.0), arrowstyle="-|>", mutation_scale=9, color=style.INK, shrinkA=0, shrinkB=0))
    axes.add_patch(Rectangle((10.0, 0.85), 1.6, 0.3, facecolor=style.GREEN, alpha=0.9))
    for x, y, text in ((4.2, 0.1, "w1 and w2, a slice a block"), (4.2, 2.95, "hidden, never in memory"), (8.0, 2.05, "shares of y"), (10.8, 0.6, "y")):
        axes.text(x, y, text, ha="center", va="center", fontsize=9)
    axes.set_xlim(-0.1, 11.8)
    axes.set_ylim(-0.05, 3.15)
    axes.axis("off")
    return style.picture(
        figure,
        f"A row x meets {blocks} slices of the weights in {blocks} colours. Each gives a piece of the hidden row, and from that a share of y as long as y itself; "
        "the shares are added up to y.",
    )
