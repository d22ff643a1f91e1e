"""`labkernels book` and `labkernels course`: the notebooks, and the assignments made of them."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labkernels.cli.complaints import complaints

Root = Annotated[Path, typer.Option(help="the folder that holds solutions/ and notebooks/", file_okay=False)]


def book(
    labs: Annotated[list[str] | None, typer.Argument(help="labs by number or name; default: those that changed")] = None,
    everything: Annotated[bool, typer.Option("--all", help="make every lab, changed or not")] = False,
    check: Annotated[bool, typer.Option("--check", help="make nothing; fail if what is made disagrees with the sources")] = False,
    root: Root = Path("."),
) -> None:
    """Make the notebooks of the book from solutions/NN_name.py."""
    root = root.resolve()
    readme = root / "README.md"
    with complaints():
        from labkernels.classroom import book as pipeline
        from labkernels.classroom import tables

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


def course(
    folder: Annotated[Path, typer.Argument(help="where the course is put; must not exist yet, or be empty")],
    labs: Annotated[list[str] | None, typer.Argument(help="labs by number or name; default: all")] = None,
    root: Root = Path("."),
) -> None:
    """Make an nbgrader course of the labs."""
    with complaints():
        from labkernels.classroom.course import make_course

        names = make_course(folder, root.resolve(), labs)
    typer.echo(f"{folder}: {len(names)} assignments; next: cd {folder} && nbgrader generate_assignment {names[0]}")
