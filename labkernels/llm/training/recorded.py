"""What was recorded of trainings on a GPU, for the lab: the ablation ladder, other models beside what others published, and the long run.

`None` where nothing is recorded yet.
"""

from __future__ import annotations

from pathlib import Path

import pandas

from labkernels.lab.measured import FOLDERS, NotRecorded, label, measured_file
from labkernels.lab.published import published

COLUMNS = {"row": "row", "on": "stands on", "adds": "what it adds", "ms_per_step": "ms a step", "peak_gb": "GB", "loss": "loss"}


def ladder() -> pandas.DataFrame | None:
    """The rows of training.csv, or None, told in a line."""
    try:
        path = measured_file("training")
    except NotRecorded:
        print("not recorded yet: on an H200, python -m labkernels.llm.training.ablation --record data/measured/h200")
        return None
    return pandas.read_csv(path, dtype={"note": str, "commit": str}).fillna({"note": ""})


def table(frame: pandas.DataFrame):
    """The ladder as a reader wants it beside its picture, and above it where it was recorded. "stands on" is empty where that row was not measured."""
    shown = frame[frame["preset"].eq("645m") | frame["preset"].isna()]
    shown = shown.assign(on=shown["base"].where(shown["base"].isin(shown["row"]), "")).rename(columns=COLUMNS)[list(COLUMNS.values())]
    formats = {"ms a step": "{:.0f}", "GB": "{:.1f}", "loss": "{:.3f}"}
    left = {name: [{"selector": "", "props": "text-align: left"}] for name in ("row", "stands on", "what it adds")}
    return shown.style.format(formats, na_rep="").hide(axis="index").set_table_styles(left).set_caption(label(frame))


def shapes(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Models of other shapes than the ladder's, and below ours what others published of theirs: model, step, GPU, steps/s, tokens/s, GB."""
    others, rows = published("training"), []
    for model, ours in frame[frame["preset"].notna() & frame["preset"].ne("645m")].groupby("preset", sort=False):
        for row in ours.itertuples():
            rate = 1e3 / row.ms_per_step
            rows.append((model, _step(row.batch, row.seq_len), row.gpu, f"{rate:.2f}", f"{row.tokens_per_s:,.0f}", f"{row.peak_gb:.0f}"))
        for row in others[others["model"].eq(model)].itertuples():
            rates = list(dict.fromkeys((row.lowest_steps_per_s, row.highest_steps_per_s)))
            tokens = [f"{rate * row.batch * row.seq_len:,.0f}" for rate in rates] if row.seq_len == row.seq_len else []
            memory = f"{row.peak_gb:.0f}" if row.peak_gb == row.peak_gb else ""
            rows.append((model, _step(row.batch, row.seq_len), f"{row.gpu}, published", " to ".join(map(str, rates)), " to ".join(tokens), memory))
    return pandas.DataFrame(rows, columns=["model", "a step", "GPU", "steps/s", "tokens/s", "GB"])


def _step(batch: float, seq_len: float) -> str:
    return f"{batch:.0f} x {seq_len:.0f} tokens" if seq_len == seq_len else f"{batch:.0f} sequences"


def trained(name: str) -> Path | None:
    """A file of data/trained/, or None, told in a line."""
    for folder in FOLDERS:
        path = folder.parent / "trained" / name
        if path.is_file():
            return path
    print(f"not recorded yet: data/trained/{name}")
    return None
