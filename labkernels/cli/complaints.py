"""What is shown of a mistake: a message, and exit status 1; a traceback is for mistakes of ours."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from labkernels.errors import LabKernelsError


@contextmanager
def complaints() -> Iterator[None]:
    """What the package raises on purpose is shown as a message, without a traceback, and ends the command with status 1."""
    try:
        yield
    except LabKernelsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
