"""The roofline: what a GPU can do at best for each arithmetic intensity, and where measured code stands below it.

After Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for Multicore Architectures", 2009.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from labkernels.lab import style
from labkernels.lab.ceilings import Ceilings
from labkernels.lab.measured import recorded_ceilings


@style.look()
def roofline(
    points: Mapping[str, tuple[float, float, float | None]], dtype: str = "float32", ceilings: Ceilings | None = None
) -> style.Picture:
    """Draw the roof of a GPU for `dtype` and each of `points`, name -> (flops, bytes moved, time in ms or None).

    Both axes show ratios: FLOPs a byte, and TFLOP/s. A point without a time is a prediction: a ring on the roof, where the limit would put
    it. `ceilings` are the recorded H200's unless given (`measure_ceilings()` measures this machine's); NotRecorded if there are none.
    """
    ceilings = ceilings or recorded_ceilings()
    peak, bandwidth = ceilings.tflops[dtype], ceilings.copy_gb_per_s / 1e3  # TFLOP/s, TB/s
    ridge = peak / bandwidth  # FLOPs a byte where the two limits meet
    intensities = {name: flops / moved for name, (flops, moved, _) in points.items()}
    rates = {name: flops / ms / 1e9 if ms else min(peak, intensities[name] * bandwidth) for name, (flops, _, ms) in points.items()}

    left = min([ridge / 30, *(0.5 * x for x in intensities.values())])
    right = max([ridge * 30, *(2 * x for x in intensities.values())])
    bottom = 0.5 * min([left * bandwidth, *rates.values()])
    figure, axes = style.figure(height=3.8)
    top = 4 * peak
    style.ratio_axis(axes, "x", _powers(left, right), _plain)
    style.ratio_axis(axes, "y", _powers(bottom, top), _plain)
    axes.plot([left, ridge, right], [left * bandwidth, peak, peak], color=style.LIMIT)
    slope = (ridge * left) ** 0.5  # halfway up the slope, as the axis shows it
    axes.text(0.85 * slope, slope * bandwidth, f"copy: {bandwidth:.2g} TB/s", ha="right", va="bottom")
    axes.text(right / 1.1, 1.15 * peak, f"{dtype} arithmetic: {peak:.3g} TFLOP/s", ha="right")
    axes.axvline(ridge, color=style.LIGHT, zorder=0)
    axes.text(ridge, bottom * 1.1, f" {ridge:.3g} FLOPs a byte", color=style.GREY, fontsize=9)
    for colour, name in zip(style.SERIES * len(points), points):
        predicted = points[name][2] is None
        axes.plot(intensities[name], rates[name], "o", color=colour, markerfacecolor=style.PAPER if predicted else colour, markersize=8)
        inwards = intensities[name] ** 2 > left * right
        axes.annotate(
            name,
            (intensities[name], rates[name]),
            xytext=(-8 if inwards else 8, -13),
            textcoords="offset points",
            ha="right" if inwards else "left",
            color=colour,
        )
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_xlabel("FLOPs a byte that has to move")
    axes.set_ylabel("TFLOP/s")
    return style.picture(figure, _alt(points, dtype, peak, bandwidth, ridge, intensities, rates))


def _alt(points, dtype, peak, bandwidth, ridge, intensities, rates) -> str:
    told = [
        f"{name} at {intensities[name]:.3g} FLOPs a byte {'could reach' if points[name][2] is None else 'reaches'} {rates[name]:.3g} TFLOP/s"
        for name in points
    ]
    roof = f"Roofline for {dtype}: {bandwidth:.2g} TB/s up to {ridge:.3g} FLOPs a byte, {peak:.3g} TFLOP/s beyond."
    return " ".join([roof, *(f"{sentence}." for sentence in told)])


def _powers(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def _plain(value: float) -> str:
    return f"{value:,g}" if value < 1e6 else f"{value:.0e}"
