"""Pictures of what a GPU can do at best: its two ceilings, what one element costs, and the roofline of the book's kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from labkernels.lab import style
from labkernels.lab.ceilings import Ceilings
from labkernels.lab.measured import NotRecorded, label, measured_file, recorded, recorded_ceilings
from labkernels.lab.roofline import roofline as draw_roofline
from labkernels.operation import as_dtype, dtype_name, ops

# NVIDIA's data sheet of the H200 SXM, without sparsity.
DATA_SHEET = Ceilings(copy_gb_per_s=4800.0, tflops={"float32": 67.0, "tf32": 494.7, "float16": 989.4, "bfloat16": 989.4})
NOT_RECORDED = "measured ceilings are not recorded yet; these are the data sheet's"


@style.look()
def axpy_traffic() -> style.Picture:
    """What a thread of out = a x + y moves and computes: two loads, a multiplication and an addition, one store."""
    figure, axes = style.figure(height=2.3)
    axes.add_patch(Rectangle((0, 0), 10, 0.8, facecolor=style.MEMORY["global"], alpha=0.45))
    axes.text(5, 0.4, "the GPU's memory: x, y, out", ha="center", va="center", fontweight="bold")
    axes.add_patch(Rectangle((0.6, 2.6), 8.8, 0.9, facecolor=style.PAPER, edgecolor=style.BLUE, linewidth=1.8))
    axes.text(5, 3.05, "one thread:  a * x[i] + y[i]", ha="center", va="center")
    for x, text, up in ((2.0, "x[i]\n4 bytes", True), (4.6, "y[i]\n4 bytes", True), (7.6, "out[i]\n4 bytes", False)):
        ends = ((x, 0.85), (x, 2.55)) if up else ((x, 2.55), (x, 0.85))
        axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=14, color=style.INK, linewidth=1.5))
        axes.text(x + 0.15, 1.7, text, va="center", fontsize=9)
    _bare(axes, (-0.1, 10.1), (-0.1, 3.7))
    return style.picture(
        figure, "A thread above the GPU's memory. Two arrows of 4 bytes go up to it, x[i] and y[i]; one arrow of 4 bytes goes down, out[i]. It computes a * x[i] + y[i]."
    )


@style.look()
def ceilings() -> style.Picture:
    """The H200's two ceilings, bytes and FLOPs a second: the data sheet's as outlines, the recorded ones as bars."""
    try:
        measured, source = recorded_ceilings(), label(pandas.read_csv(measured_file("ceilings")))
    except NotRecorded:
        measured, source = None, NOT_RECORDED
    figure, (left, right) = style.figure(1, 2, height=2.3, width_ratios=[1, 2])
    kinds = [name for name in DATA_SHEET.tflops if measured is None or name in measured.tflops]
    _bars(left, ["copy"], [DATA_SHEET.copy_gb_per_s / 1e3], [measured.copy_gb_per_s / 1e3] if measured else None, "TB/s")
    _bars(right, kinds, [DATA_SHEET.tflops[kind] for kind in kinds], [measured.tflops[kind] for kind in kinds] if measured else None, "TFLOP/s")
    left.set_title("bytes", fontsize=10)
    right.set_title("FLOPs, in the product of two matrices", fontsize=10)
    figure.supxlabel(source, x=0.99, ha="right", fontsize=8, color=style.GREY)
    shown = measured or DATA_SHEET
    rates = ", ".join(f"{kind} {shown.tflops[kind]:.0f}" for kind in kinds)
    return style.picture(figure, f"The ceilings of an H200: copying {shown.copy_gb_per_s / 1e3:.1f} TB/s; matrix products in TFLOP/s: {rates}. {source}.")


def _bars(axes: Axes, names: Sequence[str], promised: Sequence[float], measured: Sequence[float] | None, unit: str) -> None:
    for place, name in enumerate(names):
        axes.barh(place, promised[place], color="none", edgecolor=style.LIMIT, linestyle="--", height=0.7)
        value = promised[place] if measured is None else measured[place]
        if measured is not None:
            axes.barh(place, value, color=style.MEMORY["global"] if unit == "TB/s" else style.BLUE, height=0.7, alpha=0.8)
        axes.text(max(value, promised[place]), place, f"  {value:.3g} of {promised[place]:.3g}" if measured else f"  {value:.3g}", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.45 * max(promised))
    axes.set_xlabel(unit)


def roofline(points: Mapping[str, tuple[float, float]], ladder: Sequence[tuple[str, str, dict]] = (), dtype: str = "float32") -> style.Picture:
    """The roof of an H200 with predictions, name -> (flops, bytes moved), as rings, and recorded variants as dots.

    `ladder` names recorded rows as (operation, variant, sizes); rows that are not recorded are left out, and without recorded ceilings
    the roof is the data sheet's.
    """
    try:
        shown, source = recorded_ceilings(), label(pandas.read_csv(measured_file("ceilings")))
    except NotRecorded:
        shown, source = DATA_SHEET, NOT_RECORDED
    drawn = {name: (flops, moved, None) for name, (flops, moved) in points.items()}
    for op_name, variant, sizes in ladder:
        point = _recorded_point(op_name, variant, dtype, sizes)
        if point is not None:
            drawn[f"{op_name} {variant}"] = point
    picture = draw_roofline(drawn, dtype, shown)
    picture.figure.supxlabel(source, x=0.99, ha="right", fontsize=8, color=style.GREY)
    return picture


def _recorded_point(op_name: str, variant: str, dtype: str, sizes: dict) -> tuple[float, float, float] | None:
    """FLOPs, bytes and milliseconds of one recorded row; None where it is not recorded or has no time."""
    op = ops[op_name]
    shape = op.complete_shape(as_dtype(dtype), **sizes)
    try:
        frame = recorded(op_name)
    except NotRecorded:
        return None
    here = (frame["variant"] == variant) & (frame["dtype"] == dtype_name(as_dtype(dtype)))
    for size, value in shape.items():
        here &= frame[size] == value
    times = frame[here]["ms"].dropna()
    return (op.flops(**shape), op.bytes_moved(as_dtype(dtype), **shape), float(times.iloc[-1])) if len(times) else None


def _bare(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    axes.axis("off")
