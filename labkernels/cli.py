"""`labkernels ...` on the command line."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from labkernels.errors import ArgumentError, LabKernelsError

app = typer.Typer(help="The LabKernels workbook: its book, its courses, its benchmarks.", no_args_is_help=True, add_completion=False)

Root = Annotated[Path, typer.Option(help="the folder that holds solutions/ and notebooks/", file_okay=False)]


@contextmanager
def complaints() -> Iterator[None]:
    """What the package raises on purpose is shown as a message, without a traceback, and ends the command with status 1."""
    try:
        yield
    except LabKernelsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@app.command()
def book(
    labs: Annotated[list[str] | None, typer.Argument(help="labs by number or name; default: those that changed")] = None,
    everything: Annotated[bool, typer.Option("--all", help="make every lab, changed or not")] = False,
    check: Annotated[bool, typer.Option("--check", help="make nothing; fail if what is made disagrees with the sources")] = False,
    root: Root = Path("."),
) -> None:
    """Make the notebooks of the book from solutions/NN_name.py."""
    from labkernels.classroom import book as pipeline
    from labkernels.classroom import tables

    root = root.resolve()
    readme = root / "README.md"
    with complaints():
        chosen = pipeline.find_labs(root, labs)
        if check:
            found = [line for lab in chosen for line in pipeline.disagreements(lab)] + pipeline.strays(root)
            if readme.exists() and tables.is_stale(readme):
                found.append("README.md: a table differs from data/measured/")
            for line in found:
                typer.echo(line, err=True)
            if found:
                typer.echo("`labkernels book` makes them anew", err=True)
                raise typer.Exit(1)
            typer.echo(f"{len(chosen)} labs agree with their sources")
            return
        for lab in chosen:
            if labs or everything or not pipeline.is_current(lab):
                typer.echo(f"{lab.name}: made in {pipeline.make(lab):.0f} s")
            else:
                typer.echo(f"{lab.name}: unchanged")
        if readme.exists():
            tables.refresh(readme)


@app.command()
def course(
    folder: Annotated[Path, typer.Argument(help="where the course is put; must not exist yet, or be empty")],
    labs: Annotated[list[str] | None, typer.Argument(help="labs by number or name; default: all")] = None,
    root: Root = Path("."),
) -> None:
    """Make an nbgrader course of the labs."""
    from labkernels.classroom.course import make_course

    with complaints():
        names = make_course(folder, root.resolve(), labs)
    typer.echo(f"{folder}: {len(names)} assignments; next: cd {folder} && nbgrader generate_assignment {names[0]}")


@app.command()
def bench(
    ops: Annotated[list[str] | None, typer.Argument(help="operations by name; default: all")] = None,
    record: Annotated[Path | None, typer.Option(help="write the figures of the book into this folder; needs a GPU", file_okay=False)] = None,
) -> None:
    """Time every variant of an operation beside its peers and the limit; without a GPU, show the recorded figures."""
    from labkernels.lab import bench as benchmark
    from labkernels.operation import ops as registry

    with complaints():
        if unknown := set(ops or ()) - set(registry):
            raise ArgumentError(f"no operation is called {sorted(unknown)[0]!r}; there are {', '.join(registry)}")
        if record is not None:
            benchmark.record(record, ops or list(registry), say=typer.echo)
            return
        for name in ops or registry:
            typer.echo(f"{benchmark.bench(name)}\n")


@app.command()
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


@app.command()
def info() -> None:
    """Where this machine runs kernels, and with what."""
    from labkernels.lab.machine import describe_machine

    for name, value in describe_machine().items():
        typer.echo(f"{name:<20} {value}")
