"""What scaling.py recorded on several GPUs, for lab 16: `scaling()` and `links()`, of all numbers of GPUs that are recorded. None, told, where none is."""

from __future__ import annotations

import pandas

from labkernels.lab.measured import NotRecorded, label, measured_file

GPUS = (2, 4)
COLUMNS = {
    "row": "mode", "gpus": "GPUs", "tokens_per_s": "tokens/s", "ms_per_step": "ms a step", "efficiency": "efficiency", "sent_gb_per_step": "GB sent",
    "peak_gb": "memory, GB",
}  # fmt: skip


def scaling(gpus: tuple[int, ...] = GPUS):
    """The rows of scaling_N.csv as a reader wants them, and above them where they were recorded."""
    frame = _recorded("scaling", gpus)
    if frame is None:
        return None
    formats = {"tokens/s": "{:,.0f}", "ms a step": "{:.1f}", "efficiency": "{:.3f}", "GB sent": "{:.1f}", "memory, GB": "{:.1f}"}
    return frame.rename(columns=COLUMNS)[list(COLUMNS.values())].style.format(formats).hide(axis="index").set_caption(label(frame))


def links(gpus: tuple[int, ...] = GPUS):
    """Of collectives_N.csv: bus bandwidth in GB/s by the megabytes of the whole tensor, a column for each collective."""
    frame = _recorded("collectives", gpus)
    if frame is None:
        return None
    titles = frame["collective"] + ", " + frame["gpus"].astype(str) + " GPUs"
    wide = frame.assign(title=titles).pivot(index="mb", columns="title", values="bus_gb_per_s")[list(dict.fromkeys(titles))]
    return wide.rename_axis(index="MB", columns=None).style.format("{:.0f}").set_caption(label(frame))


def _recorded(name: str, gpus: tuple[int, ...]) -> pandas.DataFrame | None:
    found, missing = [], []
    for count in gpus:
        try:
            found.append(pandas.read_csv(measured_file(f"{name}_{count}"), dtype={"commit": str}))
        except NotRecorded:
            missing.append(f"not recorded yet: torchrun --nproc-per-node {count} -m labkernels.llm.parallel.scaling --record data/measured/h200")
    if not found:
        print("\n".join(missing))
    return pandas.concat(found) if found else None
