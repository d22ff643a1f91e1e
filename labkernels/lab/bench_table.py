"""What `bench` returns: the measured rows, shown as a table of times and shares of the limit, and drawn as lines or bars."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas

from labkernels.lab import style
from labkernels.lab.ladder import draw_bars, draw_lines, share_label, size_words

_NOT_SIZES = {"op", "variant", "kind", "ms", "ms_p20", "ms_p80", "tflops", "gb_per_s", "limit_ms", "share_of_limit", "peak_mb", "note"}
_SAME_AS = {"kv_heads": "heads", "kv_len": "seq_len"}
_NOT_SIZES |= {"gpu", "driver", "cuda", "torch", "commit", "date"}


@dataclass(frozen=True)
class BenchTable:
    """Rows of one operation's measurements. `.frame` is all of them, with the columns of data/README.md; `source` says whence they come.
    `varied` names the sizes that were swept; the last, the one with most values, runs along the table's columns and the plot's axis."""

    op: str
    frame: pandas.DataFrame
    source: str
    varied: tuple[str, ...]

    def pivot(self) -> pandas.DataFrame:
        """One row for each variant, one column for each value of what varies most; cells are text: `3.2 ms (12%)`, or why there is none."""
        rest, across = list(self.varied[:-1]), self.varied[-1:]
        frame = self.frame.assign(cell=[_cell(row) for row in self.frame.itertuples()])
        index = [*rest, "variant"]
        if not across:
            return frame.set_index("variant")[["cell"]].rename(columns={"cell": "time (share of limit)"})
        order = frame[index].drop_duplicates()
        table = frame.pivot_table(index=index, columns=across[0], values="cell", aggfunc="last", sort=False)
        table = table[sorted(table.columns)]
        return table.loc[[tuple(row) if rest else row[0] for row in order.itertuples(index=False)]]

    def plot(self) -> style.Picture:
        """Times against the size that varies, on ratio axes, with the limit as a line; bars where only one size was measured."""
        title = f"{self.op}: {self.fixed()}"
        if not self.varied or self.frame["ms"].isna().all():
            return draw_bars(self.frame.drop_duplicates("variant"), title, self.source)
        return draw_lines(self.frame, self.varied, title, self.source)

    def fixed(self, *across: str) -> str:
        """The sizes that all rows share, in words, but for those `across` a table; those of the keys only where they differ from the queries'."""
        left_out = _NOT_SIZES.union(across)
        sizes = [column for column in self.frame.columns if column not in left_out and self.frame[column].nunique(dropna=False) == 1]
        sizes = [size for size in sizes if not (size in _SAME_AS and self.frame[size].equals(self.frame[_SAME_AS[size]]))]
        return ", ".join(size_words(size, self.frame[size].iloc[0]) for size in sizes)

    def _repr_html_(self) -> str:
        return f"<div>{html.escape(self.op)}: {html.escape(self.fixed())}</div>{self.pivot().to_html()}<div><i>{html.escape(self.source)}</i></div>"

    def __repr__(self) -> str:
        return f"{self.op}: {self.fixed()}\n{self.pivot().to_string()}\n{self.source}"


def varied_sizes(sweep: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a sweep that take more than one value, the one with most values last."""
    counts = {name: len(values) for name, values in sweep.items() if isinstance(values, (list, tuple, range)) and len(values) > 1}
    return tuple(sorted(counts, key=counts.get))


def _cell(row) -> str:
    if math.isnan(row.ms):
        return row.note
    return style.time_label(row.ms) + (f" ({share_label(row.share_of_limit)})" if row.share_of_limit > 0 else "")
