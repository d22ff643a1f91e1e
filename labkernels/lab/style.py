"""One look for every picture of the book.

    @style.look()
    def tiles(rows, cols):
        figure, axes = style.figure(height=2.4)
        axes.bar(...color=style.OURS...)
        return style.picture(figure, alt="A 4 by 4 grid of tiles; the third is loaded into shared memory.")

A drawing function is decorated with `look()`, makes its figure with `figure()` and returns a `Picture`, which Jupyter shows with its
alt text. Figures are never registered with pyplot: none is shown twice, none stays in memory.

Colours are the colour-blind safe set of Okabe and Ito (https://jfly.uni-koeln.de/color/), each with one meaning.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW = "#56B4E9", "#CC79A7", "#F0E442"
INK, GREY, LIGHT, PAPER = "#222222", "#8C8C8C", "#E4E4E4", "#FFFFFF"

OURS, PEER, LIMIT = BLUE, GREY, INK  # whose implementation a bar or a line is
RIGHT, WRONG = GREEN, RED  # a verdict
MEMORY = {"global": ORANGE, "l2": YELLOW, "shared": SKY, "registers": GREEN}  # where a value lives
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)  # neutral series, in order of use

PIXELS_PER_INCH = 100  # size on the page; the image itself holds twice as many, for sharp text on dense screens

_LOOK = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "axes.prop_cycle": matplotlib.cycler(color=SERIES),
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "grid.color": LIGHT,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
    "patch.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "svg.hashsalt": "labkernels",
}


@contextmanager
def look() -> Iterator[None]:
    """Inside (or in a function decorated with it), matplotlib draws in the book's style; the user's own settings come back after."""
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
    with matplotlib.rc_context(defaults | _LOOK):
        yield


def figure(rows: int = 1, cols: int = 1, *, width: float = 7.0, height: float = 3.2, **grid) -> tuple[Figure, Axes]:
    """A figure of `width` by `height` inches and its axes (one, or an array of them), laid out so that nothing overlaps."""
    made = Figure(figsize=(width, height), dpi=PIXELS_PER_INCH, layout="constrained")
    return made, made.subplots(rows, cols, **grid)


class Picture:
    """A finished figure and the text that stands for it where it cannot be seen. `.figure` is matplotlib's own object."""

    def __init__(self, figure: Figure, alt: str):
        if not alt.strip():
            raise ValueError("picture: alt is empty; say in a sentence or two what the picture shows")
        self.figure = figure
        self.alt = " ".join(alt.split())
        figure.set_label(self.alt)

    def png(self) -> bytes:
        """The picture as a PNG file, two pixels for each point of the page, the same bytes for the same picture."""
        buffer = io.BytesIO()
        with look():
            self.figure.savefig(buffer, format="png", dpi=2 * PIXELS_PER_INCH, metadata={"Software": None, "Description": self.alt})
        return buffer.getvalue()

    def save(self, path) -> None:
        """Write the picture to `path`, in the format of its ending (png, svg, pdf)."""
        dateless = {"Date": None} if str(path).endswith(".svg") else None
        with look():
            self.figure.savefig(path, dpi=2 * PIXELS_PER_INCH, metadata=dateless)

    def _repr_html_(self) -> str:
        width = round(self.figure.get_figwidth() * PIXELS_PER_INCH)
        data = base64.b64encode(self.png()).decode()
        return f'<img alt="{html.escape(self.alt)}" width="{width}" src="data:image/png;base64,{data}">'

    def __repr__(self) -> str:
        return f"Picture: {self.alt}"


def picture(figure: Figure, alt: str) -> Picture:
    """The finished `figure` with its alt text: what every drawing function returns."""
    return Picture(figure, alt)


def ratio_axis(axes: Axes, which: str, values: Sequence[float], label) -> None:
    """Make axis `which` ("x" or "y") logarithmic, with one tick at each of `values`, written by `label(value)`: equal ratios, equal steps."""
    getattr(axes, f"set_{which}scale")("log", base=2)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axes.grid(True, axis=which)


def nice_ratios(low: float, high: float) -> list[float]:
    """Round numbers (1, 2, 5 times powers of ten, or powers of ten alone when many) that cover `low` to `high` for a ratio axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1,) if last - first > 3 else (1, 2, 5)
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    below = max((tick for tick in ticks if tick <= low), default=ticks[0])
    above = min((tick for tick in ticks if tick >= high), default=ticks[-1])
    return [tick for tick in ticks if below <= tick <= above]


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    size, unit = next(((size, unit) for size, unit in units if abs(value) >= size), units[-1])
    return f"{value / size:.3g} {unit}"


def time_label(ms: float) -> str:
    """A time given in milliseconds, in the unit that reads best: `12 µs`, `3.4 ms`, `1.2 s`."""
    return _scaled(ms, [(1e3, "s"), (1.0, "ms"), (1e-3, "µs")])


def bytes_label(count: float) -> str:
    """A number of bytes in decimal units: `256 B`, `134 MB`, `8.6 GB`."""
    return _scaled(count, [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")])


def flops_label(count: float) -> str:
    """A number of floating-point operations: `2.1 MFLOP`, `1.1 TFLOP`."""
    return _scaled(count, [(1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1.0, "FLOP")])
