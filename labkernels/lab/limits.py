"""The limits of recorded rows, made of one set of ceilings for all files: `python -m labkernels.lab.limits data/measured/h200`.

A ceiling of FLOPs is the fastest that the GPU has been seen to go: the products of the recording's first run (`matmul_bfloat16` in ceilings.csv), or
any row of any file that was faster (`best_bfloat16`, with `by`, its name). So nobody passes it, but for float32, whose ceiling is that of float32
arithmetic outside of the tensor cores: rows that split numbers in halves to use those are counted against it, and do not raise it.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pandas

from labkernels.lab.ceilings import Ceilings
from labkernels.lab.measure import ENVIRONMENT_COLUMNS, RESULT_COLUMNS
from labkernels.lab.measured import ceilings_of
from labkernels.operation import Op, as_dtype, ops

NOT_SIZES = {"op", "variant", "kind", "dtype", *RESULT_COLUMNS, *ENVIRONMENT_COLUMNS}


def settle(folder: Path) -> list[str]:
    """Write `best_...` of `folder`/ceilings.csv and the limits and shares of each operation's rows anew; the names of the files that changed."""
    frames = {path: _read(path) for path in sorted(folder.glob("*.csv")) if path.stem in ops}
    home = folder / "ceilings.csv"
    raised = _raised(_read(home), list(frames.values()))
    ceilings = ceilings_of(raised)
    fresh = {home: raised, **{path: _limited(ops[path.stem], frame, ceilings) for path, frame in frames.items()}}
    changed = []
    for path, frame in fresh.items():
        text = frame.to_csv(index=False)
        if text != path.read_text(encoding="utf-8"):
            path.write_text(text, encoding="utf-8")
            changed.append(path.name)
    return changed


def _read(path: Path) -> pandas.DataFrame:
    return pandas.read_csv(path, dtype=str, keep_default_na=False)  # as it is written: 13 is not 13.0


def _raised(ceilings: pandas.DataFrame, frames: list[pandas.DataFrame]) -> pandas.DataFrame:
    """The ceilings of the run, and the rows that were faster."""
    measured = ceilings[~ceilings["name"].str.startswith("best_")]
    of_run, best = ceilings_of(measured).tflops, {}
    for frame in frames:
        op = ops[frame["op"].iloc[0]]
        for row in frame[frame["ms"] != ""].to_dict("records"):
            kind = Ceilings.kind(op, as_dtype(row["dtype"]))
            if kind != "float32" and float(row["tflops"]) > float(best.get(kind, {"tflops": of_run.get(kind, 0.0)})["tflops"]):
                best[kind] = row
    found = [
        {"name": f"best_{kind}", "value": row["tflops"], "unit": "TFLOP/s", "by": _name(row)} | {name: row[name] for name in ENVIRONMENT_COLUMNS}
        for kind, row in sorted(best.items())
    ]
    columns = ["name", "value", "unit", "by", *ENVIRONMENT_COLUMNS]
    return pandas.concat([measured, pandas.DataFrame(found, columns=columns)])[columns].fillna("")


def _limited(op: Op, frame: pandas.DataFrame, ceilings: Ceilings) -> pandas.DataFrame:
    limits = [ceilings.limit_ms(op, as_dtype(row["dtype"]), _shape(row)) for row in frame.to_dict("records")]
    shares = [limit / float(ms) if ms else math.nan for limit, ms in zip(limits, frame["ms"])]
    return frame.assign(limit_ms=_texts(limits), share_of_limit=_texts(shares))


def _shape(row: dict[str, str]) -> dict:
    """The sizes and options of a row, as its operation takes them."""
    return {name: _value(text) for name, text in row.items() if name not in NOT_SIZES and text != ""}


def _value(text: str) -> bool | int | float | str:
    if text in ("True", "False"):
        return text == "True"
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number


def _name(row: dict[str, str]) -> str:
    return f"{row['op']} {row['variant']}: " + ", ".join(f"{size} {value}" for size, value in _shape(row).items())


def _texts(numbers: list[float]) -> list[str]:
    return ["" if math.isnan(number) else f"{number:.6g}" for number in numbers]


if __name__ == "__main__":
    for name in settle(Path(sys.argv[1])):
        print(name)
