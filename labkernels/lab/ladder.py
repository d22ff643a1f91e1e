"""Pictures of measurements: lines over a size, bars beside each other, and always the limit."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import pandas

from labkernels.lab import style

_DASHES = ["-", "--", "-.", ":"]
_SHADES = ["#9ECAE1", "#6BAED6", "#3182BD", "#08519C", "#08306B"]  # our versions, from the first to the last
_YOURS = style.ORANGE
BEYOND = 1.2  # above this share of the limit a row must use other units than those that the limit is of; bytes may come to 1.1 of a copy's


@style.look()
def draw_lines(frame: pandas.DataFrame, varied: Sequence[str], title: str, source: str) -> style.Picture:
    """One panel for each combination of all but the last of `varied`, which is the horizontal axis; both axes show ratios."""
    *rest, across = varied
    groups = list(frame.groupby(rest, sort=False)) if rest else [((), frame)]
    rows = math.ceil(len(groups) / 2)
    figure, axes = style.figure(rows, min(2, len(groups)), width=7.5, height=0.6 + 2.9 * rows, squeeze=False, sharey=True)
    looks = _looks(frame)
    sizes = sorted(frame[across].unique())
    times = pandas.concat([frame["ms"], frame["limit_ms"]]).dropna()
    for panel, (values, group) in zip(axes.flat, groups):
        for variant, line in group.dropna(subset=["ms"]).groupby("variant", sort=False):
            panel.plot(line[across], line["ms"], marker="o", label=variant, **looks[variant])
        limit = group.dropna(subset=["limit_ms"]).drop_duplicates(across).sort_values(across)
        panel.plot(limit[across], limit["limit_ms"], color=style.LIMIT, linestyle=(0, (4, 2)), linewidth=1.2, label="limit", zorder=1)
        style.ratio_axis(panel, "x", sizes, _count_label)
        style.ratio_axis(panel, "y", style.nice_ratios(times.min(), times.max()), style.time_label)
        panel.set_xlabel(across)
        panel.set_title(", ".join(size_words(name, value) for name, value in zip(rest, values)) if rest else "")
    for panel in axes.flat[len(groups) :]:
        panel.set_visible(False)
    handles = {text: handle for panel in axes.flat for handle, text in zip(*panel.get_legend_handles_labels())}
    order = [name for name in [*looks, "limit"] if name in handles]
    figure.legend([handles[name] for name in order], order, loc="outside right center")
    _headline(figure, title, source)
    return style.picture(figure, f"Time of {title}, over {across}. {_best(frame)} {source}.")


@style.look()
def draw_bars(frame: pandas.DataFrame, title: str, source: str) -> style.Picture:
    """One bar a row, in the order given, from the limit to the time, on a ratio axis: its length is the factor that is lost.
    What has no time says why."""
    names = [str(name) for name in frame["variant"]]
    figure, axes = style.figure(width=7.0, height=1.1 + 0.34 * len(names))
    looks, limits = _looks(frame), frame["limit_ms"].dropna()
    start = limits.iloc[0] if len(limits) else 1.0
    longest = max(frame["ms"].max(), 10 * start) if frame["ms"].notna().any() else 10 * start
    for place, row in enumerate(frame.itertuples()):
        if math.isnan(row.ms):
            axes.text(start, place, f"  {row.note}", va="center", color=style.GREY)
            continue
        axes.barh(place, row.ms - start, left=start, color=looks[row.variant]["color"], height=0.7)
        text = f"  {style.time_label(row.ms)}, {_of_the_limit(row.share_of_limit)}" if row.share_of_limit > 0 else f"  {style.time_label(row.ms)}"
        axes.text(max(row.ms, start), place, text, va="center", fontsize=9)
    shortest = min([start, *frame["ms"].dropna()])
    style.ratio_axis(axes, "x", style.nice_ratios(shortest, longest), style.time_label)
    axes.set_xlim(0.8 * shortest, longest * (longest / start) ** 0.5)
    if len(limits):
        axes.axvline(start, color=style.LIMIT, linestyle=(0, (4, 2)), linewidth=1.2)
        axes.set_title(f"limit {style.time_label(start)}", fontsize=9, fontweight="normal")
    else:
        axes.xaxis.set_visible(False)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    _headline(figure, title, source)
    return style.picture(figure, f"Bars of the time of {title}. {_best(frame)} {source}.")


def _headline(figure, title: str, source: str) -> None:
    """The title above the panels, and where the figures come from below them; lines as long as the figure is wide."""
    figure.suptitle(textwrap.fill(title, 80), x=0.01, ha="left", fontweight="bold", fontsize=11)
    lines = textwrap.fill(source, int(16 * figure.get_figwidth()), break_on_hyphens=False)
    figure.supxlabel(lines, x=0.99, ha="right", fontsize=8, color=style.GREY)


def _looks(frame: pandas.DataFrame) -> dict[str, dict]:
    """Colour and dash of each variant: ours from light to dark blue up the ladder, peers grey, the reader's own orange."""
    kinds = frame.drop_duplicates("variant").set_index("variant")["kind"]
    ours = [name for name, kind in kinds.items() if kind == "ours"]
    shades = _SHADES[-len(ours) :] if len(ours) <= len(_SHADES) else [_SHADES[min(i, len(_SHADES) - 1)] for i in range(len(ours))]
    looks = {name: {"color": shade, "linestyle": "-"} for name, shade in zip(ours, shades)}
    peers = [name for name, kind in kinds.items() if kind == "peer"]
    looks |= {name: {"color": style.PEER, "linestyle": _DASHES[i % len(_DASHES)]} for i, name in enumerate(peers)}
    yours = [name for name, kind in kinds.items() if kind == "yours"]
    return looks | {name: {"color": _YOURS, "linestyle": _DASHES[i % len(_DASHES)]} for i, name in enumerate(yours)}


def _best(frame: pandas.DataFrame) -> str:
    """A sentence for the alt text: who is closest to the limit, and how close."""
    measured = frame.dropna(subset=["share_of_limit"])
    if measured.empty:
        return "No times." if frame["ms"].isna().all() else "The limit is not known."
    beyond = measured["share_of_limit"] > BEYOND
    sentences = []
    if not beyond.all():
        best = measured.loc[measured["share_of_limit"].where(~beyond).idxmax()]
        sentences.append(f"Closest to the limit is {best['variant']}, at {share_label(best['share_of_limit'])} of it.")
    for variant, rows in measured[beyond].groupby("variant", sort=False):
        sentences.append(f"{variant} is past it, {share_label(rows['share_of_limit'].max())}, by 16-bit halves on tensor cores.")
    return " ".join(sentences)


def _of_the_limit(share: float) -> str:
    return f"{share_label(share)} as fast as the limit" if share > BEYOND else f"{share_label(share)} of the limit"


def share_label(share: float) -> str:
    """A share of the limit: `86%`; that of a row which multiplies float32 on tensor cores, and so is not held by the limit of float32: `4.6×`."""
    return f"{share:.1f}×" if share > BEYOND else f"{share:.0%}"


def size_words(name: str, value) -> str:
    """A size or option in words: `seq_len 512`, `float32`, `causal`, `not causal`."""
    if isinstance(value, bool) or str(value) in ("True", "False"):
        return name if str(value) == "True" else f"not {name}"
    return str(value) if name == "dtype" else f"{name} {value}"


def _count_label(value: float) -> str:
    """A size as people write it: 512, 4096, 64Ki, 256Mi."""
    for size, unit in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if value >= (16 * size if size < 1 << 20 else size) and value % size == 0:
            return f"{int(value // size)}{unit}"
    return f"{value:g}"
