"""`labkernels bench`, `resources` and `info`: the kernels, what they take, and what they run on here."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labkernels.cli.complaints import complaints
from labkernels.errors import ArgumentError


def bench(
    ops: Annotated[list[str] | None, typer.Argument(help="operations by name; default: all")] = None,
    record: Annotated[Path | None, typer.Option(help="write the figures of the book into this folder; needs a GPU", file_okay=False)] = None,
    budget_ms: Annotated[float, typer.Option(min=1.0, help="with --record: what the samples of a row may take")] = 100.0,
    longest_call_ms: Annotated[float, typer.Option(min=1.0, help="with --record: a call expected to take longer is left out")] = 800.0,
    seconds: Annotated[float, typer.Option(min=1.0, help="with --record: after so long no further operation is begun")] = float("inf"),
) -> None:
    """Time every variant of an operation beside its peers and the limit; without a GPU, show the recorded figures."""
    from labkernels.lab import bench as benchmark
    from labkernels.operation import ops as registry

    with complaints():
        if unknown := set(ops or ()) - set(registry):
            raise ArgumentError(f"no operation is called {sorted(unknown)[0]!r}; there are {', '.join(registry)}")
        if record is not None:
            benchmark.record(record, ops or list(registry), budget_ms, longest_call_ms, seconds, say=typer.echo)
            return
        for name in ops or registry:
            typer.echo(f"{benchmark.bench(name)}\n")


def resources(
    update: Annotated[bool, typer.Option("--update", help="write data/resources.csv anew")] = False,
) -> None:
    """Compile every kernel for sm_80 and sm_90a, and compare its registers and spills with data/resources.csv."""
    from tqdm import tqdm

    from labkernels.lab import resource_table as table
    from labkernels.lab.launched import launched_kernels

    with complaints():
        kernels = launched_kernels()
        total = len(kernels) * len(table.ARCHITECTURES)
        rows = table.compile_rows(kernels, progress=lambda done: tqdm(done, total=total, disable=None))
        found = table.complaints(table.read_table() if table.TABLE.is_file() else [], rows)
        for line in found:
            typer.echo(line, err=not update)
        if update:
            table.write_table(rows)
        elif found:
            typer.echo("if that is as it should be, `labkernels resources --update` records it", err=True)
            raise typer.Exit(1)
        typer.echo(f"{len(rows)} rows, {len(kernels)} kernels, {sum(1 for row in rows if row.spill_stores)} rows with spills")


def info() -> None:
    """Where this machine runs kernels, and with what."""
    from labkernels.lab.machine import describe_machine

    for name, value in describe_machine().items():
        typer.echo(f"{name:<20} {value}")
