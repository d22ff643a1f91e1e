"""`labkernels lab`: JupyterLab with the book open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from labkernels.cli.complaints import complaints


def lab(
    name: Annotated[
        str | None, typer.Argument(help="a lab by number or name, such as 03 or 03_matmul; default: the list in JupyterLab")
    ] = None,
    root: Annotated[Path, typer.Option(help="the folder that holds notebooks/, as the repository does", file_okay=False)] = Path("."),
    worked: Annotated[bool, typer.Option("--worked", help="the notebooks with solutions and outputs instead of the student's")] = False,
    names: Annotated[bool, typer.Option("--list", help="print the labs and open nothing")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="the port of JupyterLab on this machine")] = 8888,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open a browser window, or only say the address")] = True,
) -> None:
    """Open JupyterLab on the labs."""
    from labkernels.errors import ArgumentError

    with complaints():
        folder = root / ("solutions" if worked else "notebooks")
        found = sorted(path.stem for path in folder.glob("[0-9][0-9]_*.ipynb"))
        if not found:
            raise ArgumentError(f"there are no labs in {folder}; give the repository's folder with --root, or clone it first")
        if names:
            typer.echo("\n".join(found))
            return
        chosen = [each for each in found if name in (each, each[:2])]
        if name is not None and not chosen:
            raise ArgumentError(f"no lab is called {name!r}; there are {', '.join(found)}")
        command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder.resolve()}", f"--ServerApp.port={port}"]
        if name is not None:
            command.append(f"--LabApp.default_url=/lab/tree/{chosen[0]}.ipynb")
        if not browser:
            command.append("--no-browser")
        raise typer.Exit(subprocess.run(command, check=False).returncode)
