"""A profile in a notebook: the kernel's source, and beside every line what its warps asked of memory there, as heat.

Colours are translucent, so that they read on light and on dark pages; there are no scripts.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from labkernels.lab import style

_AROUND = 4  # untouched lines shown on each side of touched ones
_HOTTEST = 0.6  # opacity: text must stay readable
_CODE = "text-align:left;white-space:pre"
_STYLE = """<style>
.lk-profile {overflow-x: auto; font-size: 88%}
.lk-profile table {border-collapse: collapse; border: none; margin: 0 0 .6em; line-height: 1.45; font-size: inherit; color: inherit}
.lk-profile tr {background: transparent !important}
.lk-profile td, .lk-profile th {padding: 0 .35em; text-align: right; white-space: nowrap; border: none; line-height: 1.45;
  font-variant-numeric: tabular-nums}
.lk-profile .gap {border-left: 1px solid rgba(128,128,128,.35)}
.lk-profile .names th {font-weight: 400; white-space: normal; vertical-align: bottom; border-bottom: 1px solid rgba(128,128,128,.5)}
.lk-profile .code {font-family: var(--jp-code-font-family, monospace)}
.lk-profile .faint {opacity: .5}
</style>"""
_TITLES = {
    "global_load": "global loads", "global_store": "global stores", "global_atomic": "global atomics", "shared_load": "shared loads",
    "shared_store": "shared stores", "shared_atomic": "shared atomics", "local_load": "local loads", "local_store": "local stores",
}  # fmt: skip


class _Column(NamedTuple):
    group: str
    head: str
    text: Callable[[dict], str]
    heat: Callable[[dict], float]  # 0 to 1
    colour: str
    tip: Callable[[dict], str]


def as_html(profile) -> str:
    """The whole report: a line of totals, the source with its counters, and Nsight Compute's counters where they were asked for."""
    parts = [f"<p style='margin:0 0 .4em'><b>{html.escape(profile.kernel)}</b>: {_summary(profile)}</p>"]
    columns = _columns(profile)
    lines = {(row["file"], row["line"]): row for row in profile.by_line.to_dict("records")}
    for file in dict.fromkeys([profile.source.filename, *(file for file, _ in lines)]):
        touched = {line: row for (name, line), row in lines.items() if name == file}
        if touched and (file == profile.source.filename or any(_asks(row) for row in touched.values())):
            title = html.escape(Path(file).name) if file != profile.source.filename else ""
            parts.append(_table(title, _text_of(profile, file), touched, columns))
    if profile.ncu is not None:
        parts.append(_comparison(profile))
    return f"{_STYLE}<div class=lk-profile>{''.join(parts)}</div>"


def _asks(row: dict) -> bool:
    """Whether a line asks anything of memory."""
    return any(row[f"{kind}_requests"] for kind in _TITLES)


def _summary(profile) -> str:
    parts = []
    if profile.bytes_needed:
        times = profile.bytes_moved / profile.bytes_needed
        more = f", {times:.3g} times as many" if times >= 1.005 else ""
        parts.append(
            f"moves {_strong(style.bytes_label(profile.bytes_moved))} of global memory where {style.bytes_label(profile.bytes_needed)} "
            f"are touched{more}"
        )
    loads, stores = profile.global_load_sectors_per_request, profile.global_store_sectors_per_request
    told = [f"{value:.3g} a {name}" for value, name in ((loads, "load"), (stores, "store")) if value == value]
    if told:
        parts.append(f"sectors: {_strong(', '.join(told))}")
    if profile.shared_load_requests or profile.shared_store_requests or profile.shared_atomic_requests:
        conflicts = profile.shared_load_conflicts + profile.shared_store_conflicts + profile.shared_atomic_conflicts
        parts.append(f"{_strong(_count(conflicts))} bank conflicts")
    if profile.local_load_requests or profile.local_store_requests:
        spilled = profile.local_load_bytes + profile.local_store_bytes
        parts.append(f"{_strong(style.bytes_label(spilled))} of local memory")
    if profile.active_lanes == profile.active_lanes:
        parts.append(f"{_strong(_percent(profile.active_lanes))} of lanes active")
    if profile.l2_bytes:
        looked = profile.l2_hits + profile.l2_misses
        share = _percent(profile.l2_hits / looked) if looked else "none"
        parts.append(f"L2 of {style.bytes_label(profile.l2_bytes)}: {_strong(share)} of sectors hit")
    return "; ".join(parts) or "asks nothing of memory"


def _columns(profile) -> list[_Column]:
    """The counters that this launch has something in."""
    columns = []
    for kind, title in _TITLES.items():
        requests = getattr(profile, f"{kind}_requests")
        if not requests:
            continue
        column = _columns_of(profile, kind, title)
        if kind.startswith("global"):
            columns += [column("sectors"), _per_request(kind, title)]
        elif kind.startswith("shared"):
            columns += [column("requests"), column("conflicts")]
        else:
            columns += [column("bytes")]
    if profile.barriers:
        columns.append(_Column("warps", "barriers", lambda row: _count(row["barriers"]) if row["barriers"] else "", lambda row: 0, style.BLUE, _no_tip))
    if profile.divergent_branches:
        worst = profile.by_line["divergent_branches"].max()
        columns.append(
            _Column("warps", "diverge", lambda row: _count(row["divergent_branches"]) if row["divergent_branches"] else "", lambda row: _HOTTEST * row["divergent_branches"] / worst,
                    style.PURPLE, lambda row: f"{row['divergent_branches']} times a warp came here and left lanes behind")
        )  # fmt: skip
    columns.append(
        _Column("warps", "active", lambda row: _percent(row["active_lanes"]) if row["text"].strip("{};") else "", lambda row: _heat_of_lanes(row["active_lanes"]), style.PURPLE,
                lambda row: f"{32 * row['active_lanes']:.3g} of 32 lanes at work in the mean")
    )  # fmt: skip
    return columns


def _columns_of(profile, kind: str, title: str) -> Callable[[str], _Column]:
    def column(counter: str) -> _Column:
        name = f"{kind}_{counter}"
        whole = getattr(profile, name)
        colour = {"requests": style.BLUE, "conflicts": style.RED}.get(counter, style.ORANGE)

        def tip(row) -> str:
            requests = row[f"{kind}_requests"]
            share = _percent(row[name] / whole if whole else 0)
            return f"{requests} requests, of {row[f'{kind}_bytes'] / requests:.4g} bytes in the mean; {share} of the launch's {counter}"

        return _Column(
            title, counter, lambda row: _count(row[name]) if row[f"{kind}_requests"] else "",
            lambda row: _HOTTEST * math.sqrt(row[name] / whole) if whole else 0, colour, tip,
        )  # fmt: skip

    return column


def _per_request(kind: str, title: str) -> _Column:
    def fewest(row) -> float:
        return max(row[f"{kind}_bytes"] / row[f"{kind}_requests"] / 32, 1)

    def heat(row) -> float:
        wasted = row[f"{kind}_sectors_per_request"] / fewest(row)
        return min(_HOTTEST * math.log2(wasted) / 3, _HOTTEST) if wasted > 1 else 0

    def tip(row) -> str:
        return f"a request asks for {row[f'{kind}_bytes'] / row[f'{kind}_requests']:.4g} bytes, which fit in {math.ceil(fewest(row))} sectors"

    return _Column(
        title, "per request", lambda row: f"{row[f'{kind}_sectors_per_request']:.3g}" if row[f"{kind}_requests"] else "",
        lambda row: heat(row) if row[f"{kind}_requests"] else 0, style.RED, lambda row: tip(row) if row[f"{kind}_requests"] else "",
    )  # fmt: skip


def _table(title: str, text: dict[int, str], touched: dict[int, dict], columns: list[_Column]) -> str:
    groups: dict[str, int] = {}
    for column in columns:
        groups[column.group] = groups.get(column.group, 0) + 1
    starts = {next(i for i, column in enumerate(columns) if column.group == group) for group in groups} - {0}
    gaps = [" class=gap" if i in starts else "" for i in range(len(columns))]
    head = "".join(
        f"<th{' class=gap' if i else ''} colspan={n} style='text-align:center'>{group}</th>" for i, (group, n) in enumerate(groups.items())
    )
    names = "".join(f"<th{gap}>{column.head}</th>" for column, gap in zip(columns, gaps))
    body = []
    for number in _shown(text, touched):
        row = touched.get(number)
        cells = "".join(_cell(column, row, gap) for column, gap in zip(columns, gaps))
        code = "<span class=faint>⋯</span>" if number is None else _coloured(text.get(number, ""), touched=row is not None)
        body.append(
            f"<tr>{cells}<td class='gap code'><span class=faint>{'' if number is None else number}</span></td><td class=code style='{_CODE}'>{code}</td></tr>"
        )
    return (
        f"<table><thead><tr>{head}<th class=gap></th><th style='text-align:left'>{title}</th></tr>"
        f"<tr class=names>{names}<th class=gap></th><th></th></tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def _cell(column: _Column, row: dict | None, gap: str) -> str:
    text = column.text(row) if row else ""
    tip = column.tip(row) if text and text != "0" else ""
    heat = column.heat(row) if text else 0
    look = f"background:{_rgba(column.colour, heat)}" if heat > 0.01 else "opacity:.4" if text in ("0", "100%") else ""
    shown = (f" title='{html.escape(tip)}'" if tip else "") + (f" style='{look}'" if look else "")
    return f"<td{gap}{shown}>{text}</td>"


def _comparison(profile) -> str:
    rows = "".join(
        f"<tr><td style='text-align:left'>{name.replace('_', ' ')}</td><td>{_count(ours)}</td>"
        f"<td{'' if ours == theirs else ' style=font-weight:600'}>{_count(theirs)}</td></tr>"
        for name, ours, theirs in profile.compared.itertuples(index=False)
    )
    return f"<table><tr><th></th><th>emulator</th><th>ncu</th></tr>{rows}</table>"


def _text_of(profile, file: str) -> dict[int, str]:
    """The lines of `file` by number: the kernel's source, or a header that it includes."""
    if file == profile.source.filename:
        return dict(enumerate(profile.source.text.splitlines(), profile.source.first_line))
    header = next((path for path in profile.source.headers() if str(path) == str(Path(file).resolve())), None)
    return dict(enumerate(header.read_text(encoding="utf-8", errors="replace").splitlines(), 1)) if header else {}


def _shown(text: dict[int, str], touched: dict[int, dict]) -> list[int | None]:
    """The numbers of the lines to show, None where some are left out: the functions touched, without long stretches untouched."""
    near = {number for line in touched for number in _function(text, line)}
    near = {number for number in near if any(line in touched for line in range(number - _AROUND, number + _AROUND + 1))} | set(touched)
    if len(text) - len(near) <= _AROUND:
        near |= set(text)
    ordered = sorted(near)
    first, last = min(text, default=ordered[0]), max(text, default=ordered[-1])
    shown: list[int | None] = []
    for before, number in zip([first - 1, *ordered], ordered):
        shown += [number] if number == before + 1 else [None, number]
    return shown + ([None] if ordered[-1] < last else [])


def _function(text: dict[int, str], line: int) -> range:
    """The lines of the function around `line`, by their indentation."""
    first = last = line
    while first - 1 in text and (text[first][:1].isspace() or text[first][:1] in ("", "}")):
        first -= 1
    while last + 1 in text and not text[last].startswith("}") and not (last == first and text[last].endswith("}")):
        last += 1
    return range(first, last + 1)


def _coloured(line: str, touched: bool) -> str:
    """A line of C++ as HTML, in JupyterLab's own colours for code where it has them."""
    from pygments.lexers import CudaLexer
    from pygments.token import Comment, Keyword, Name, Number, String

    names = {Comment: "comment", Keyword: "keyword", Number: "number", String: "string", Name.Builtin: "builtin"}
    code = line.lstrip()
    pieces = ["\u00a0" * (len(line.expandtabs(4)) - len(code.expandtabs(4)))]  # plain spaces alone between two tags are lost in nbconvert's pages
    for kind, text in CudaLexer(stripnl=False, ensurenl=False).get_tokens(code):
        name = next((name for token, name in names.items() if kind in token), None)
        escaped = html.escape(text)
        pieces.append(f"<span style='color:var(--jp-mirror-editor-{name}-color,inherit)'>{escaped}</span>" if name and text.strip() else escaped)
    code = "".join(pieces)
    return code if touched else f"<span class=faint>{code}</span>"


def _heat_of_lanes(share: float) -> float:
    return _HOTTEST * (1 - share) if share == share else 0


def _strong(text: str) -> str:
    return f"<b>{text}</b>"


def _no_tip(row: dict) -> str:
    return ""


def _count(value: float) -> str:
    return f"{int(value):,}".replace(",", "\u202f")


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%" if share == share else ""


def _rgba(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:.2f})"
