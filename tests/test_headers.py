"""What a kernel's header says it measured is what the file that it names holds.

Of a header's *Measured* paragraph every number with a unit (`68.6 us`, `2.91 ms`, `791 TFLOP/s`, `87% of the limit`), every number `from -> to` such
a one, and every other number with a decimal point must be that of a recorded row: of this version, of one before it or named, or of a peer.
Sentences that speak of making, tuning or a profile tell what was seen while the kernel was made, which no file holds.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pandas
import pytest

import labkernels
from labkernels.lab.measured import measured_file
from labkernels.operation import ops

PACKAGE = Path(labkernels.__file__).parent
APART = PACKAGE / "llm" / "inference"  # whose rows are of a whole engine
NOISE = 0.012
PARAGRAPH = re.compile(r"^//   Measured\s(.*?)(?=^//   [A-Z]|^(?!//))|^// What it measure[sd]*(.*?)(?=^//$|^(?!//))", re.DOTALL | re.MULTILINE)
NUMBER = r"(\d+(?:\.\d+)?)"
CLAIM = re.compile(rf"(?:{NUMBER} -> )?{NUMBER} ?(us|ms|TFLOP/s|% of the limit)(?![a-z])")
BARE = re.compile(r"(?<![\w.])(?<!top-p )(\d+\.\d+)(?!\.?\d|e-?\d| ?(?:us|ms|TFLOP/s|%|times|of |TB|GB|KB|MB|W\b|x))")
TOLD_OTHERWISE = re.compile(r"\b(made|tuned|tuning|profile|Nsight|On the way|[Nn]ot (?:yet )?(?:recorded|measured)|[Nn]othing)\b")
HEADERS = sorted(path for path in PACKAGE.rglob("*.cu") if APART not in path.parents and PARAGRAPH.search(path.read_text(encoding="utf-8")))


@cache
def variants_of() -> dict[Path, list[tuple[str, str]]]:
    """The versions that a file is the source of: (operation, name)."""
    found: dict[Path, list[tuple[str, str]]] = {}
    for op in ops.values():
        for variant in op.variants.values():
            found.setdefault(variant.source, []).append((op.name, variant.name))
    return found


def measured(path: Path) -> str:
    """The paragraph as one line."""
    lesson, essay = PARAGRAPH.search(path.read_text(encoding="utf-8")).groups()
    return " ".join(line.removeprefix("//").strip() for line in (lesson or essay).splitlines())


def rows(path: Path, text: str) -> pandas.DataFrame:
    """The recorded rows that the paragraph may speak of."""
    frames = []
    for name in dict.fromkeys(re.findall(r"\b(\w+)\.csv", text)):
        frame = pandas.read_csv(measured_file(name))
        if name in ops:
            ladder = list(ops[name].variants)
            own = [ladder.index(variant) for op, variant in variants_of().get(path, []) if op == name]
            before = {variant for place in own for variant in ladder[: place + 1]}
            named = {variant for variant in ladder if re.search(rf"\b{variant.split('_')[0]}\b", text) or variant in text} if own else set(ladder)
            frame = frame[frame["variant"].isin(before | named) | (frame["kind"] == "peer")]
        frames.append(frame)
    assert frames, "names no file"
    return pandas.concat(frames)


def unfounded(path: Path, text: str) -> list[str]:
    """The claims of a paragraph that no row bears out."""
    told = [sentence for sentence in re.split(r"(?<=[.;]) ", text) if not TOLD_OTHERWISE.search(sentence)]
    claims = [(number, unit) for sentence in told for *numbers, unit in CLAIM.findall(sentence) for number in numbers if number]
    claims += [(number, "") for sentence in told for number in BARE.findall(CLAIM.sub(" ", sentence))]
    if not claims:
        return []
    frame = rows(path, text)
    times = frame[[column for column in ("ms", "ms_per_step", "ms_per_token") if column in frame]].stack()
    values = {"us": 1e3 * times, "ms": times}
    if "tflops" in frame:
        values |= {"TFLOP/s": frame["tflops"], "% of the limit": 100 * frame["share_of_limit"]}
    borne_out = [any(_near(float(number), number, of, values[of]) for of in ([unit] if unit else values)) for number, unit in claims]
    return [f"{number} {unit}".strip() for (number, unit), right in zip(claims, borne_out) if not right]


def _near(wanted: float, written: str, unit: str, values: pandas.Series) -> bool:
    """Whether one of the values is what was written, within the noise and to the last digit."""
    slack = max(NOISE * wanted, 0.51 * 10 ** -len(written.partition(".")[2])) if unit != "% of the limit" else 1.01
    return bool((abs(values - wanted) <= slack).any())


@pytest.mark.parametrize("path", HEADERS, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_what_a_header_measured_is_recorded(path):
    text = measured(path)
    assert ".csv" in text or TOLD_OTHERWISE.search(text), "names neither a file nor what else was measured"
    assert unfounded(path, text) == []


def test_a_figure_that_no_row_has_is_found():
    path = PACKAGE / "matmul" / "v7_hopper.cu"
    text = "data/measured/h200/matmul.csv: 176 us, 791 TFLOP/s, 12.34 -> 176 us, 55.5 ms. While it was tuned 44.4 ms."
    assert unfounded(path, text) == ["12.34 us", "55.5 ms"]
