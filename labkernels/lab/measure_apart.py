"""Measuring in a process of its own: a function that hangs or brings it down costs its row, and the notebook goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from labkernels.child_process import START_S
from labkernels.lab.ceilings import measure_ceilings
from labkernels.lab.measure import Entry, empty_row, measure
from labkernels.lab.worker import CannotBeSent, ChildDied, worker
from labkernels.operation import Op, Shape


def measure_apart(
    op: Op,
    entries: Sequence[Entry],
    points: Sequence[tuple[torch.dtype, Shape]],
    time_limit_s: float,
    *,
    device: str = "cuda",
    timer: Callable = measure,
    ceilings: Callable = measure_ceilings,
) -> list[dict]:
    """A row of `timer` for each point and entry. One that took longer than `time_limit_s`, or ended its process, says so in its row's note.

    It is not tried again at later points. Raises what an entry raises; ArgumentError for one that cannot leave this process.
    """
    rows, ended = [], set()
    with worker.session(device) as session:
        for dtype, shape in points:
            for entry in entries:
                if entry.name in ended:
                    rows.append(empty_row(op, entry, dtype, shape, "left out: it had to be ended before"))
                    continue
                try:
                    measured = session.call(ceilings, time_limit_s=START_S)  # once a process
                    rows.append(session.call(timer, op, entry, dtype, shape, measured, time_limit_s=time_limit_s))
                except CannotBeSent as error:
                    raise error.naming("bench", entry.name) from error
                except ChildDied as error:
                    rows.append(empty_row(op, entry, dtype, shape, f"ended: {error}"))
                    ended.add(entry.name)
    return rows
