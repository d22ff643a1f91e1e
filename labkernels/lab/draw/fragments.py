"""Pictures of tensor cores' operands: which lane holds which element of mma.sync, and rows of pieces with and without a swizzle."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from labkernels.lab import style

COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE)  # of registers, and of pieces


def holder_of_a(row: int, col: int) -> tuple[int, int]:
    """The lane that holds A[row][col] of mma.sync m16n8k16, and the number of its element, two of which share a register."""
    return row % 8 * 4 + col % 8 // 2, col // 8 * 4 + row // 8 * 2 + col % 2


def holder_of_b(row: int, col: int) -> tuple[int, int]:
    """The same for B, 16 x 8."""
    return col * 4 + row % 8 // 2, row // 8 * 2 + row % 2


def holder_of_c(row: int, col: int) -> tuple[int, int]:
    """The same for C, 16 x 8, whose elements have a register each."""
    return row % 8 * 4 + col // 2, row // 8 * 2 + col % 2


@style.look()
def mma_fragments(lane: int = 9) -> style.Picture:
    """A, B and C of mma.sync m16n8k16: each cell's lane as a number, its register as colour; one lane outlined."""
    figure, axes = style.figure(width=7.6, height=3.9)
    held = {}
    matrices = (("A", 0.0, 16, holder_of_a, 2), ("B", 18.2, 8, holder_of_b, 2), ("C", 28.4, 8, holder_of_c, 1))
    for name, left, cols, holder, in_a_register in matrices:
        axes.text(left, 16.4, name, ha="left", va="bottom", fontweight="bold")
        for row in range(16):
            for col in range(cols):
                owner, element = holder(row, col)
                colour = COLOURS[element // in_a_register]
                axes.add_patch(Rectangle((left + col, 15 - row), 1, 1, facecolor=colour, alpha=0.4, edgecolor="none"))
                if owner == lane:
                    held.setdefault(name, []).append((row, col))
        _pairs(axes, left, cols, holder, lane, upright=name == "B")
    for name, left, text, y in (
        ("a", 4.0, "a[0]", 16.4), ("a", 12.0, "a[2]", 16.4), ("a", 4.0, "a[1]", -0.3), ("a", 12.0, "a[3]", -0.3),
        ("b", 22.2, "b[0]", 16.4), ("b", 22.2, "b[1]", -0.3), ("c", 32.4, "c[0]  c[1]  c[0] ...", 16.4), ("c", 32.4, "c[2]  c[3]  c[2] ...", -0.3),
    ):  # fmt: skip
        axes.text(left, y, text, ha="center", va="bottom" if y > 0 else "top", fontsize=8, color=style.INK)
    axes.text(8, -1.6, "16 x 16", ha="center", va="top", fontsize=8, color=style.GREY)
    axes.text(22.2, -1.6, "16 x 8", ha="center", va="top", fontsize=8, color=style.GREY)
    axes.text(32.4, -1.6, "16 x 8", ha="center", va="top", fontsize=8, color=style.GREY)
    axes.set_xlim(-0.2, 36.6)
    axes.set_ylim(-2.7, 17.8)
    axes.set_aspect("equal")
    axes.axis("off")
    places = "; ".join(f"of {name} {', '.join(f'({row}, {col})' for row, col in cells)}" for name, cells in held.items())
    return style.picture(
        figure,
        f"The matrices A, 16 by 16, B and C, 16 by 8, with the number of the lane that holds each cell and the register as colour. Lane {lane} holds, "
        f"as (row, column): {places}. In A and C four neighbouring lanes share 8 columns of a row, in B 8 rows of a column.",
    )


def _pairs(axes: Axes, left: float, cols: int, holder, lane: int, upright: bool) -> None:
    """A box with the lane's number around each two cells that one lane holds, side by side or one below the other."""
    for row in range(0, 16, 2 if upright else 1):
        for col in range(0, cols, 1 if upright else 2):
            owner, _ = holder(row, col)
            mine, width, height = owner == lane, 1 if upright else 2, 2 if upright else 1
            axes.add_patch(Rectangle((left + col, 16 - row - height), width, height, fill=False, edgecolor=style.PAPER, linewidth=0.8))
            if mine:
                axes.add_patch(Rectangle((left + col + 0.06, 16 - row - height + 0.06), width - 0.12, height - 0.12, fill=False, edgecolor=style.INK, linewidth=1.8))
            axes.text(left + col + width / 2, 16 - row - height / 2, f"{owner}", ha="center", va="center", fontsize=6.5, fontweight="bold" if mine else "normal")


def place_of(row: int, piece: int, swizzled: bool = True) -> int:
    """Where row `row` of a tile keeps its 16-byte piece `piece`, 0 to 7: under TMA's 128-byte swizzle, or as it is."""
    return piece ^ row % 8 if swizzled else piece


@style.look()
def swizzled_pieces(piece: int = 3) -> style.Picture:
    """Eight rows of eight 16-byte pieces, plain and swizzled; one column of pieces, as ldmatrix wants it, is marked."""
    figure, panels = style.figure(1, 2, height=2.9)
    for axes, swizzled in zip(panels, (False, True)):
        for row in range(8):
            for inside in range(8):
                place = place_of(row, inside, swizzled)
                mine = inside == piece
                axes.add_patch(Rectangle((place, 7 - row), 1, 1, facecolor=style.BLUE if mine else style.LIGHT, alpha=0.75 if mine else 1, edgecolor=style.PAPER, linewidth=1.2))
                axes.text(place + 0.5, 7.5 - row, f"{inside}", ha="center", va="center", fontsize=8, color=style.PAPER if mine else style.INK, fontweight="bold" if mine else "normal")
        places = {place_of(row, piece, swizzled) for row in range(8)}
        passes = 8 // len(places)
        axes.set_title(f"{'swizzled' if swizzled else 'plain'}: {passes} pass{'es' if passes > 1 else ''}", fontsize=10)
        axes.set_yticks([7.5 - row for row in range(8)], [f"row {row}" for row in range(8)], fontsize=8)
        axes.set_xticks([0.5, 3.5, 7.5], ["place 0\nbanks 0-3", "place 3\nbanks 12-15", "place 7\nbanks 28-31"], fontsize=8)
        axes.tick_params(length=0)
        axes.set_xlim(0, 8)
        axes.set_ylim(0, 8)
        axes.set_aspect("equal")
        for spine in axes.spines.values():
            spine.set_visible(False)
    order = ", ".join(f"{place_of(row, piece)}" for row in range(8))
    return style.picture(
        figure,
        f"Eight rows of eight pieces of 16 bytes. Plain: piece {piece} of every row is in place {piece}, the same four banks, and reading the eight takes "
        f"8 passes. Swizzled: rows 0 to 7 keep it in the places {order}, all banks, one pass.",
    )
