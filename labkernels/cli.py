"""`labkernels ...` on the command line."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The LabKernels workbook: its book, its courses, its benchmarks.", no_args_is_help=True, add_completion=False)

Root = Annotated[Path, typer.Option(help="the folder that holds solutions/ and notebooks/", file_okay=False)]


@app.callback()
def main() -> None:
    """Without this, a single command would lose its name."""


@app.command()
def book(
    labs: Annotated[list[str] | None, typer.Argument(help="labs by number or name; default: those that changed")] = None,
    everything: Annotated[bool, typer.Option("--all", help="make every lab, changed or not")] = False,
    check: Annotated[bool, typer.Option("--check", help="make nothing; fail if what is made disagrees with the sources")] = False,
    root: Root = Path("."),
) -> None:
    """Make the notebooks of the book from solutions/NN_name.py."""
    from labkernels.classroom import book as pipeline
    from labkernels.classroom.source import BookError

    try:
        chosen = pipeline.find_labs(root.resolve(), labs)
        if check:
            complaints = [line for lab in chosen for line in pipeline.disagreements(lab)] + pipeline.strays(root.resolve())
            for line in complaints:
                typer.echo(line, err=True)
            if complaints:
                typer.echo("run `labkernels book` and commit what it makes", err=True)
                raise typer.Exit(1)
            typer.echo(f"{len(chosen)} labs agree with their sources")
            return
        for lab in chosen:
            if not (labs or everything) and pipeline.is_current(lab):
                typer.echo(f"{lab.name}: unchanged")
                continue
            typer.echo(f"{lab.name}: made in {pipeline.make(lab):.0f} s")
    except BookError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@app.command()
def course(
    folder: Annotated[Path, typer.Argument(help="where the course is put; must not exist yet, or be empty")],
    labs: Annotated[list[str] | None, typer.Argument(help="labs by number or name; default: all")] = None,
    root: Root = Path("."),
) -> None:
    """Make an nbgrader course of the labs."""
    from labkernels.classroom.course import make_course
    from labkernels.classroom.source import BookError

    try:
        names = make_course(folder, root.resolve(), labs)
    except BookError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{folder}: {len(names)} assignments; next: cd {folder} && nbgrader generate_assignment {names[0]}")


@app.command()
def info() -> None:
    """Where this machine runs kernels, and with what."""
    from labkernels.lab.machine import describe_machine

    for name, value in describe_machine().items():
        typer.echo(f"{name:<20} {value}")
