"""`bench("attention", ["v1_naive", my_attention, "cudnn"], seq_len=[512, 4096])`: times beside each other, and beside the limit.

On a GPU every row is measured now, all in one process, peers and ceilings included. Without one, the rows recorded on an H200 are shown and
labelled so; a function of the reader's gets no time at all, for the emulator's time says nothing about a GPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas
import torch

from labkernels.lab.bench_table import BenchTable, varied_sizes
from labkernels.lab.ceilings import measure_ceilings
from labkernels.lab.environment import environment
from labkernels.lab.measure import ENVIRONMENT_COLUMNS, RESULT_COLUMNS, Entry, empty_row, measure
from labkernels.lab.measure_apart import measure_apart
from labkernels.lab.measured import NotRecorded, label, recorded
from labkernels.lab.record import record
from labkernels.operation import Op, Peer, Shape, Variant, as_dtype, dtype_name, ops, product_of

__all__ = ["bench", "record"]


def bench(
    op: str | Op,
    entries: Sequence[str | Variant | Peer | Callable] | None = None,
    *,
    isolated: bool | None = None,
    time_limit_s: float = 60.0,
    **sweep,
) -> BenchTable:
    """Time `entries` (names of variants and peers, functions; default: all there are) at every combination of `sweep`.

    `sweep` takes sizes, options and `dtype`, each one value or a list; what is left out is the operation's own default.
    With `isolated`, all of them run in a second process, and one that takes longer than `time_limit_s` for a row is ended; so it is as soon
    as one of them is a function of the reader's, unless told otherwise.
    Returns a table that shows itself, and has `.frame` (all columns of data/README.md) and `.plot()`.
    """
    op = ops[op] if isinstance(op, str) else op
    chosen = [Entry.of(op, what) for what in (entries if entries is not None else [*op.variants, *op.peers])]
    points = sweep_points(op, sweep)
    if isolated is None:
        isolated = any(entry.kind == "yours" for entry in chosen)
    if not torch.cuda.is_available():
        rows, source = _recorded_rows(op, chosen, points)
    elif isolated:
        rows = measure_apart(op, chosen, points, time_limit_s)
    else:
        ceilings = measure_ceilings()
        rows = [measure(op, entry, dtype, shape, ceilings) for dtype, shape in points for entry in chosen]
    if torch.cuda.is_available():
        source = f"measured now on {environment()['gpu']}"
    columns = ["op", "variant", "kind", *points[0][1], "dtype", *RESULT_COLUMNS, *ENVIRONMENT_COLUMNS]
    return BenchTable(op.name, pandas.DataFrame(rows, columns=columns), source, varied_sizes({**op.sweep, **sweep}))


def sweep_points(op: Op, sweep: dict) -> list[tuple[torch.dtype, Shape]]:
    """Every dtype and complete shape of a sweep, the operation's defaults filled in. TypeError for a size the operation does not have."""
    points = []
    for combination in product_of({**op.sweep, **sweep}):
        dtype = as_dtype(combination.pop("dtype", op.dtypes[0]))
        try:
            points.append((dtype, op.complete_shape(dtype, **combination)))
        except TypeError as error:
            raise TypeError(f"bench: {op.name}: {str(error).split('() ', 1)[-1]}") from None
    return points


def _recorded_rows(op: Op, chosen: Sequence[Entry], points) -> tuple[list[dict], str]:
    """The recorded row for each entry and point, or an empty one that says why there is none; and where the rows come from."""
    try:
        frame = recorded(op.name)
    except NotRecorded as error:
        frame, missing = None, str(error)
    rows, used = [], []
    for dtype, shape in points:
        for entry in chosen:
            if entry.kind == "yours":
                rows.append(empty_row(op, entry, dtype, shape, "times need a GPU"))
                continue
            found = _find(frame, entry.name, dtype, shape) if frame is not None else None
            rows.append(found or empty_row(op, entry, dtype, shape, "not recorded"))
            used += [found] if found else []
    if frame is None:
        return rows, missing
    return rows, label(pandas.DataFrame(used, columns=frame.columns))


def _find(frame: pandas.DataFrame, name: str, dtype: torch.dtype, shape: Shape) -> dict | None:
    here = (frame["variant"] == name) & (frame["dtype"] == dtype_name(dtype))
    for size, value in shape.items():
        if size not in frame:
            return None
        here &= frame[size].isna() if value is None else frame[size] == value
    return frame[here].iloc[-1].to_dict() | {size: None for size, value in shape.items() if value is None} if here.any() else None
