"""Which quantisations are worth having: those than which no other is both smaller (or faster) and better.

    plot(table)                       # a table of labkernels.llm.quantisation.quality.compare
    table[frontier(table)]
    plot(recorded())                  # of a GPU, where `labkernels evaluate --out` has written it
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from labkernels.errors import ArgumentError
from labkernels.lab import style
from labkernels.lab.measured import NotRecorded, measured_file

if TYPE_CHECKING:
    import pandas

COLOURS = {"int8": style.BLUE, "fp8": style.SKY, "int4": style.ORANGE, "nf4": style.PURPLE}  # others are not quantised
MARKERS = {"mse": "s", "gptq": "^"}  # others are rounded to nearest
NAME, LINE = 0.3, 0.06  # width and height of a name, as shares of the axes


def frontier(table: pandas.DataFrame, cost: str = "memory_bytes", quality: str = "bits_per_byte") -> list[bool]:
    """For each row: is no other row as cheap and better, or cheaper and as good? Of `cost` and `quality` less is better, but more of tokens_per_s."""
    for name in (cost, quality):
        if name not in table:
            raise ArgumentError(f"frontier: the table has no column {name!r}")
    costs = -table[cost] if cost == "tokens_per_s" else table[cost]
    points = list(zip(costs, table[quality]))
    return [c == c and not any(a <= c and b <= q and (a, b) != (c, q) for a, b in points) for c, q in points]


def recorded() -> pandas.DataFrame | None:
    """The table that was recorded of the model of lab 14's long run, or None, told in a line."""
    import pandas

    try:
        path = measured_file("quantisation_quality")
    except NotRecorded:
        print("not recorded yet: on an H200, labkernels evaluate FOLDER --speed --out data/measured/h200/quantisation_quality.csv")
        return None
    return pandas.read_csv(path, dtype={"commit": str})


@style.look()
def plot(table: pandas.DataFrame, quality: str | None = None) -> style.Picture:
    """Bits per byte (or perplexity, where bytes are not known) over memory, and over tokens a second where they were measured."""
    quality = quality or ("bits_per_byte" if table.bits_per_byte.notna().all() else "perplexity")
    costs = ["memory_bytes"] + (["tokens_per_s"] if table.tokens_per_s.notna().any() else [])
    figure, grid = style.figure(cols=len(costs), height=3.8, squeeze=False, sharey=True)
    told = []
    for axes, cost in zip(grid[0], costs):
        best = frontier(table, cost, quality)
        _points(axes, table, cost, quality, best)
        over, less = ("memory", "smaller") if cost == "memory_bytes" else ("tokens a second", "faster")
        told.append(f"Over {over}, no other is both better and {less} than {', '.join(table.recipe[best].sort_values())}.")
    grid[0][0].set_ylabel({"bits_per_byte": "bits per byte of held-out text"}.get(quality, quality))
    figure.legend(handles=_legend(table), loc="outside lower center", ncols=4, fontsize=8)
    span = f"{table[quality].min():.4g} to {table[quality].max():.4g}"
    what = f"Points for {len(table)} ways to store a model: {quality.replace('_', ' ')} from {span}, lower is better. "
    return style.picture(figure, what + " ".join(told))


def _points(axes: Axes, table: pandas.DataFrame, cost: str, quality: str, best: list[bool]) -> None:
    scale = 1e6 if cost == "memory_bytes" else 1.0
    line = table[best].sort_values(cost)
    axes.plot(line[cost] / scale, line[quality], color=style.LIMIT, linewidth=1.0, zorder=1)
    for row, on_line in zip(table.itertuples(), best):
        x, y = getattr(row, cost) / scale, getattr(row, quality)
        if x != x:
            continue
        colour = COLOURS.get(row.weights, style.INK)
        small_cache = "+" in row.recipe
        axes.plot(x, y, MARKERS.get(row.quantizer, "o"), color=colour, markerfacecolor=style.PAPER if small_cache else colour, markersize=7, zorder=2)
    low, high = table[cost].min() / scale, table[cost].max() / scale
    reach = high - low or 0.1 * high
    room = (0.5, 0.1) if cost == "memory_bytes" else (0.1, 0.5)  # where names are
    axes.set_xlim(low - room[0] * reach, high + room[1] * reach)
    axes.margins(y=0.2)
    axes.grid(True)
    _names(axes, line, cost, quality, scale)
    axes.set_xlabel("weights and cache, MB" if cost == "memory_bytes" else "tokens a second, one answer at a time")


def _names(axes: Axes, line: pandas.DataFrame, cost: str, quality: str, scale: float) -> None:
    """Below the points of the frontier, on the cheap side, where by its definition nothing stands; a line lower where another name does."""
    bottom, top = axes.get_ylim()
    left, right = axes.get_xlim()
    cheap_is_left, taken = cost != "tokens_per_s", []  # of names their places, as shares of the axes
    for row in line.sort_values(quality, ascending=False).itertuples():
        x, y = getattr(row, cost) / scale, getattr(row, quality)
        across, up, lines = (x - left) / (right - left), (y - bottom) / (top - bottom), 0
        while any(abs(across - other) < NAME and abs(up - LINE * lines - height) < LINE for other, height in taken):
            lines += 1
        taken.append((across, up - LINE * lines))
        place = {"ha": "right" if cheap_is_left else "left", "va": "top", "textcoords": "offset points", "fontsize": 8}
        axes.annotate(row.recipe, (x, y), xytext=(-4 if cheap_is_left else 4, -3 - 11 * lines), **place)


def _legend(table: pandas.DataFrame) -> list[Line2D]:
    def entry(label: str, marker: str, colour: str, hollow: bool = False) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=colour, markerfacecolor=style.PAPER if hollow else colour, markersize=7, label=label)

    found = [entry(weights, "o", COLOURS.get(weights, style.INK)) for weights in dict.fromkeys(table.weights)]
    found += [entry({"mse": "least error", "gptq": "GPTQ"}[name], marker, style.GREY) for name, marker in MARKERS.items() if (table.quantizer == name).any()]
    if table.recipe.str.contains("+", regex=False).any():
        found.append(entry("8-bit cache", "o", style.GREY, hollow=True))
    best = "nothing is smaller and as good" if table.tokens_per_s.isna().all() else "nothing is smaller, or faster, and as good"
    return [*found, Line2D([], [], color=style.LIMIT, linewidth=1.0, label=best)]
