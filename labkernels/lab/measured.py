"""The figures that `labkernels bench --record` wrote: `recorded("attention")`. Columns are described in data/README.md."""

from __future__ import annotations

from pathlib import Path

import pandas

from labkernels.errors import LabKernelsError
from labkernels.lab.ceilings import Ceilings
from labkernels.lab.measure import ENVIRONMENT_COLUMNS

GPU = "h200"  # whose figures the book shows
_PACKAGE = Path(__file__).parents[1]
FOLDERS = (_PACKAGE.parent / "data" / "measured", _PACKAGE / "data" / "measured")  # in a checkout; in an installed package


class NotRecorded(LabKernelsError):
    """There are no recorded figures of this kind."""


def measured_file(name: str, gpu: str = GPU) -> Path:
    """The path of data/measured/<gpu>/<name>.csv; NotRecorded if there is no such file."""
    for folder in FOLDERS:
        path = folder / gpu / f"{name}.csv"
        if path.is_file():
            return path
    raise NotRecorded(
        f"no figures of {name} are recorded: data/measured/{gpu}/{name}.csv is missing; "
        f"on a GPU, `labkernels bench --record data/measured/{gpu}` writes it"
    )


def recorded(op_name: str, gpu: str = GPU) -> pandas.DataFrame:
    """All recorded rows of an operation; NotRecorded if there are none."""
    as_text = dict.fromkeys(["note", *ENVIRONMENT_COLUMNS], str)  # a commit such as 12e456789012 is no number
    return pandas.read_csv(measured_file(op_name, gpu), dtype=as_text).fillna({"note": ""})


def recorded_ceilings(gpu: str = GPU) -> Ceilings:
    """The ceilings recorded for a GPU; NotRecorded if there are none."""
    return ceilings_of(pandas.read_csv(measured_file("ceilings", gpu)))


def ceilings_of(frame: pandas.DataFrame) -> Ceilings:
    """The ceilings of a ceilings.csv: for each dtype the higher of `matmul_...`, of its own run, and `best_...`, of the operations' rows."""
    values = {name: float(value) for name, value in zip(frame["name"], frame["value"])}
    tflops: dict[str, float] = {}
    for name, value in values.items():
        start, _, kind = name.partition("_")
        if start in ("matmul", "best"):
            tflops[kind] = max(value, tflops.get(kind, 0.0))
    return Ceilings(values["copy"], tflops, read_gb_per_s=values.get("read"))


def label(frame: pandas.DataFrame) -> str:
    """Where rows come from: `recorded on NVIDIA H200, 2026-11-20, commit 0123456789ab`."""
    commits = sorted({str(commit) for commit in frame["commit"].dropna()})
    dates = sorted({str(date) for date in frame["date"].dropna()})
    gpus = sorted({str(gpu) for gpu in frame["gpu"].dropna()})
    if not gpus:
        return "nothing of this is recorded"
    return f"recorded on {' and '.join(gpus)}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit {', '.join(commits)}"
