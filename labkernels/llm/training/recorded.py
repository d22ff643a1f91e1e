"""What was recorded of trainings on a GPU, for the lab: the ablation ladder, and the run of a quarter of an hour. `None` where nothing is recorded yet."""

from __future__ import annotations

from pathlib import Path

import pandas

from labkernels.lab.measured import FOLDERS, NotRecorded, label, measured_file

COLUMNS = {
    "row": "row", "adds": "what it adds", "tokens_per_s": "tokens/s", "ms_per_step": "ms a step", "mfu": "MFU", "peak_gb": "GB", "loss": "loss",
}  # fmt: skip


def ladder() -> pandas.DataFrame | None:
    """The rows of training.csv, or None, told in a line."""
    try:
        path = measured_file("training")
    except NotRecorded:
        print("not recorded yet: on an H200, python -m labkernels.llm.training.ablation --record data/measured/h200")
        return None
    return pandas.read_csv(path, dtype={"note": str, "commit": str}).fillna({"note": ""})


def table(frame: pandas.DataFrame):
    """The ladder as a reader wants it, and below it where it was recorded."""
    shown = frame[frame["preset"].eq("645m") | frame["preset"].isna()].rename(columns=COLUMNS)[list(COLUMNS.values())]
    formats = {"tokens/s": "{:,.0f}", "ms a step": "{:.0f}", "MFU": "{:.1%}", "GB": "{:.1f}", "loss": "{:.3f}"}
    return shown.style.format(formats, na_rep="").hide(axis="index").set_caption(label(frame))


def trained(name: str) -> Path | None:
    """A file of data/trained/, or None, told in a line."""
    for folder in FOLDERS:
        path = folder.parent / "trained" / name
        if path.is_file():
            return path
    print(f"not recorded yet: data/trained/{name}")
    return None
