"""Tables of recorded figures in Markdown files, written between markers and never by hand:

    <!-- measured: attention dtype=bfloat16 head_dim=128 causal=False across=seq_len -->
    <!-- /measured -->

The first word is an operation; `across` is the size that runs along the columns; the rest chooses the rows.
"""
from __future__ import annotations

import re
from pathlib import Path

import pandas

from labkernels.classroom.source import BookError
from labkernels.lab.bench_table import BenchTable
from labkernels.lab.measured import label, recorded

_TABLE = re.compile(r"(<!-- measured: ([^\n]*?) -->\n)(.*?)(<!-- /measured -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """`text` with the table between each pair of markers written anew.

    Raises BookError for a marker that names a column that is not recorded or chooses no row, NotRecorded for an operation without figures.
    """
    if text.count("<!-- measured:") != len(_TABLE.findall(text)):
        raise BookError("a marker <!-- measured: ... --> has no <!-- /measured --> below it")
    return _TABLE.sub(lambda match: match.group(1) + markdown_table(match.group(2)) + match.group(4), text)


def markdown_table(wanted: str) -> str:
    """The table for the words of a marker: a row for each variant that was timed, with times and shares of the limit; below it where they come from,
    and why the other variants have no row."""
    op, *words = wanted.split()
    choice = dict(word.split("=", 1) for word in words)
    across = choice.pop("across", None)
    frame = recorded(op)
    unknown = [column for column in [*choice, across] if column not in frame.columns]
    if unknown:
        raise BookError(f"measured: {wanted}: " + ("across=... is missing" if unknown == [None] else f"{unknown[0]} is not recorded"))
    for column, value in choice.items():
        frame = frame[frame[column].astype(str) == value]
    if frame.empty:
        raise BookError(f"measured: {wanted}: no recorded row is like that")
    timed = frame.groupby("variant")["ms"].transform("count") > 0
    refused = timed & frame["ms"].isna() & ~frame["note"].astype(str).str.startswith("left out")  # "left out: about 2 s a call" says so in its cell
    table = BenchTable(op, frame[timed & ~refused], label(frame), (across,)).pivot().fillna("–")
    heads = ["", *(f"{across} {value}" for value in table.columns)]
    rows = [heads, ["---"] * len(heads), *([f"`{name}`", *cells] for name, *cells in table.itertuples())]
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    source = f"Time, and the share of the limit reached; {label(frame)}."
    return "\n".join(lines) + f"\n\n{source}{_reasons('Without a row', frame[~timed])}{_reasons('Not at all sizes', frame[refused])}\n"


def _reasons(head: str, frame: pandas.DataFrame) -> str:
    """Which variants have no figure, those of the same reason together, as a sentence; nothing if there are none."""
    variants: dict[str, list[str]] = {}
    for variant, rows in frame.groupby("variant", sort=False):
        variants.setdefault("; ".join(dict.fromkeys(rows["note"].astype(str))), []).append(f"`{variant}`")
    told = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in variants.items())
    return f" {head}: {told}." if told else ""


def refresh(path: Path) -> None:
    """Write the tables of a Markdown file anew."""
    text = path.read_text(encoding="utf-8")
    if (fresh := with_tables(text)) != text:
        path.write_text(fresh, encoding="utf-8")


def is_stale(path: Path) -> bool:
    """Whether a table in a Markdown file differs from the recorded rows."""
    text = path.read_text(encoding="utf-8")
    return with_tables(text) != text
