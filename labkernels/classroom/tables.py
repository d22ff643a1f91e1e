"""Tables of recorded figures in Markdown files, written between markers and never by hand:

    <!-- measured: attention dtype=bfloat16 head_dim=128 causal=False across=seq_len -->
    <!-- /measured -->

The first word is an operation; `across` is the size that runs along the columns; the rest chooses the rows, of the variants and peers that `show`
lists, or of all. Of files that are no operation's, rows as they are, with these `columns`:

    <!-- rows: engine model=llama-3.2-1b batch=1 prompt=64 columns=runner,weights,tokens_per_s -->
    <!-- /rows -->
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas

from labkernels.classroom.source import BookError
from labkernels.lab.bench_table import BenchTable
from labkernels.lab.ladder import BEYOND
from labkernels.lab.measured import label, recorded

_MARKER = r"(<!-- {kind}: ([^\n]*?) -->\n)(.*?)(<!-- /{kind} -->)"
_FORMATS = {
    "tokens_per_s": ("tokens/s", "{:,.0f}"), "first_token_ms": ("first token", "{:.1f} ms"), "ms_per_token": ("a step", "{:.2f} ms"),
    "ms_per_step": ("a step", "{:.0f} ms"), "share_of_limit": ("of the limit", "{:.0%}"), "mfu": ("MFU", "{:.1%}"), "peak_gb": ("memory", "{:.1f} GB"),
    "adds": ("what it adds", "{}"), "loss": ("loss", "{:.3f}"), "efficiency": ("efficiency", "{:.3f}"), "gpus": ("GPUs", "{}"),
}  # fmt: skip


def with_tables(text: str) -> str:
    """`text` with the table between each pair of markers written anew.

    Raises BookError for a marker that names a column that is not recorded or chooses no row, NotRecorded for an operation without figures.
    """
    for kind, table in (("measured", markdown_table), ("rows", markdown_rows)):
        pattern = re.compile(_MARKER.format(kind=kind), re.DOTALL)
        if text.count(f"<!-- {kind}:") != len(pattern.findall(text)):
            raise BookError(f"a marker <!-- {kind}: ... --> has no <!-- /{kind} --> below it")
        text = pattern.sub(lambda match, table=table: match.group(1) + table(match.group(2)) + match.group(4), text)
    return text


def markdown_table(wanted: str) -> str:
    """The table for the words of a marker: a row for each variant that was timed, with times and shares of the limit; below it where they come from,
    and why the other variants have no row."""
    op, choice = _words(wanted)
    across, show = choice.pop("across", None), choice.pop("show", None)
    frame = _chosen("measured", wanted, op, choice, [across])
    if show is not None:
        if unknown := set(show.split(",")) - set(frame["variant"]):
            raise BookError(f"measured: {wanted}: no recorded row is of {sorted(unknown)[0]}")
        frame = frame[frame["variant"].isin(show.split(","))]
    timed = frame.groupby("variant")["ms"].transform("count") > 0
    refused = timed & frame["ms"].isna() & ~frame["note"].astype(str).str.startswith("left out")  # "left out: about 2 s a call" says so in its cell
    shown = BenchTable(op, frame[timed & ~refused], label(frame), (across,))
    table = shown.pivot().fillna("–")
    heads = ["", *(f"{across} {value}" for value in table.columns)]
    rows = [heads, ["---"] * len(heads), *([f"`{name}`", *cells] for name, *cells in table.itertuples())]
    passed = " (×: so many times as fast as float32's limit, by 16-bit halves on tensor cores)" if (frame["share_of_limit"] > BEYOND).any() else ""
    source = f"Time of {op}, {shown.fixed(across)}, and the share of the limit reached{passed}; {label(frame)}."
    return _lines(rows) + f"\n\n{source}{_reasons('Without a row', frame[~timed])}{_reasons('Not at all sizes', frame[refused])}\n"


def markdown_rows(wanted: str) -> str:
    """The recorded rows for the words of a marker that were measured, and below them where they come from."""
    name, choice = _words(wanted)
    columns = choice.pop("columns", "").split(",")
    frame = _chosen("rows", wanted, name, choice, columns)
    numbers = frame[columns].select_dtypes("number")
    frame = frame[numbers.notna().any(axis=1) | numbers.empty]  # the others were not measured
    titles = [_FORMATS.get(column, (column, ""))[0] for column in columns]
    told = [[f"`{row[0]}`", *(_cell(column, value) for column, value in zip(columns[1:], row[1:]))] for row in frame[columns].itertuples(index=False)]
    return _lines([["", *titles[1:]], ["---"] * len(columns), *told]) + f"\n\nR{label(frame)[1:]}.\n"


def _cell(column: str, value) -> str:
    return "" if pandas.isna(value) else _FORMATS.get(column, ("", "{}"))[1].format(value)


def _words(wanted: str) -> tuple[str, dict[str, str]]:
    name, *words = wanted.split()
    return name, dict(word.split("=", 1) for word in words)


def _chosen(kind: str, wanted: str, name: str, choice: dict[str, str], columns: list[str | None]) -> pandas.DataFrame:
    frame = recorded(name)
    if unknown := [column for column in [*choice, *columns] if column not in frame.columns]:
        missing = "across" if kind == "measured" else "columns"
        raise BookError(f"{kind}: {wanted}: " + (f"{missing}=... is missing" if unknown[0] in (None, "") else f"{unknown[0]} is not recorded"))
    for column, value in choice.items():
        frame = frame[frame[column].astype(str) == value]
    if frame.empty:
        raise BookError(f"{kind}: {wanted}: no recorded row is like that")
    return frame


def _lines(rows: list[list]) -> str:
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


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
