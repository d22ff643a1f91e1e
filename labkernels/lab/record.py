"""`labkernels bench --record DIR`: measure everything that the book shows, and write it down. Needs a GPU; takes some minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas
import torch

from labkernels.errors import LabKernelsError
from labkernels.lab.bench_table import BenchTable, varied_sizes
from labkernels.lab.ceilings import Ceilings, measure_ceilings
from labkernels.lab.environment import environment
from labkernels.lab.limits import settle
from labkernels.lab.measure import ENVIRONMENT_COLUMNS, RESULT_COLUMNS, Entry, empty_row, measure
from labkernels.operation import Op, as_dtype, ops, product_of

LONGEST_CALL_MS = 800.0  # what one call may be expected to take; longer ones are left out, and their rows say so


def record(
    folder: str | Path,
    op_names: Sequence[str] = tuple(ops),
    budget_ms: float = 100.0,
    longest_call_ms: float = LONGEST_CALL_MS,
    seconds: float = float("inf"),
    say: Callable = print,
) -> None:
    """Measure the ceilings and every sweep of these operations, and write `folder`/ceilings.csv and one csv for each operation.

    Each file is written when its operation is done. `budget_ms` is the time spent on each row's samples, `longest_call_ms` what one call may be
    expected to take. After `seconds` no further operation is begun: those left are named. Prints tables at the end.
    """
    if not torch.cuda.is_available():
        raise LabKernelsError("bench --record: figures are recorded on an NVIDIA GPU, and this machine has none")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    ceilings = measure_ceilings()
    _ceilings_frame(ceilings).to_csv(folder / "ceilings.csv", index=False, float_format="%.6g")
    summaries = []
    for number, name in enumerate(op_names):
        if time.perf_counter() - start > seconds:
            say(f"not measured, {seconds:.0f} s have passed: {', '.join(op_names[number:])}")
            break
        frame = measure_sweeps(ops[name], ceilings, budget_ms, longest_call_ms)
        frame.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
        summaries.append(_summary(ops[name], frame))
        say(f"{name}: {len(frame)} rows after {time.perf_counter() - start:.0f} s")
    settle(folder)  # a row may be faster than the ceilings
    say("\n".join([*map(str, summaries), _ceilings_frame(ceilings)[["name", "value", "unit"]].to_string(index=False)]))


def measure_sweeps(
    op: Op, ceilings: Ceilings, budget_ms: float, longest_call_ms: float = LONGEST_CALL_MS, timer: Callable = measure
) -> pandas.DataFrame:
    """One row for each variant and peer at each point of the operation's recorded sweeps."""
    entries = [Entry.of(op, name) for name in (*op.variants, *op.peers)]
    pace: dict[tuple, float] = {}  # milliseconds per FLOP or byte of an entry and dtype, as last measured: sweeps go from small to large
    rows, measured = [], set()
    for sweep in op.record_sweeps:
        for combination in product_of(sweep):
            dtype = as_dtype(combination.pop("dtype", op.dtypes[0]))
            shape = op.complete_shape(dtype, **combination)
            point = dtype, str(sorted(shape.items()))
            if point in measured:  # sweeps may cross
                continue
            measured.add(point)
            work = op.flops(**shape) or op.bytes_moved(dtype, **shape)
            for entry in entries:
                expected_ms = pace.get((entry.name, dtype), 0.0) * work
                if expected_ms > longest_call_ms:
                    note = f"left out: about {expected_ms / 1e3:.1f} s a call"
                    rows.append(empty_row(op, entry, dtype, shape, note) | environment() | {"limit_ms": ceilings.limit_ms(op, dtype, shape)})
                    continue
                row = timer(op, entry, dtype, shape, ceilings, budget_ms)
                rows.append(row)
                if row["ms"] > 0:  # not nan
                    pace[entry.name, dtype] = row["ms"] / work
    others = {"op", "variant", "kind", "dtype", *RESULT_COLUMNS, *ENVIRONMENT_COLUMNS}
    sizes = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in others]  # some shapes have more of them
    return pandas.DataFrame(rows, columns=["op", "variant", "kind", *sizes, "dtype", *RESULT_COLUMNS, *ENVIRONMENT_COLUMNS])


def _ceilings_frame(ceilings: Ceilings) -> pandas.DataFrame:
    values = [("copy", ceilings.copy_gb_per_s, "GB/s")]
    values += [("read", ceilings.read_gb_per_s, "GB/s")] if ceilings.read_gb_per_s else []
    values += [(f"matmul_{name}", value, "TFLOP/s") for name, value in ceilings.tflops.items()]
    return pandas.DataFrame([{"name": name, "value": value, "unit": unit} | environment() for name, value, unit in values])


def _summary(op: Op, frame: pandas.DataFrame) -> BenchTable:
    """A short table: of every size that was swept, but for dtype and the one along the columns, only the last value."""
    sweep = op.record_sweeps[0]
    varied = varied_sizes(sweep)
    for size in varied[:-1]:
        if size != "dtype":
            frame = frame[frame[size] == sweep[size][-1]]
    source = f"{frame['gpu'].iloc[0]}, {frame['date'].iloc[0]}, commit {frame['commit'].iloc[0]}"
    return BenchTable(op.name, frame, source, tuple(size for size in varied if size in ("dtype", varied[-1])))
