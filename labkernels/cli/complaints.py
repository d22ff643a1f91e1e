"""What is shown of a mistake: one message, and exit status 1; a traceback is for mistakes of ours. Of a warning of ours: its text."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from labkernels.errors import LabKernelsError

_PACKAGE = Path(__file__).parents[1]


@contextmanager
def complaints() -> Iterator[None]:
    """What the package raises on purpose, memory that runs out, files that cannot be read: the command ends with a message and status 1."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that has not all characters shows the others
    try:
        with plain_warnings():
            yield
    except LabKernelsError as error:
        _end(str(error))
    except BrokenPipeError:  # whoever read has had enough: `labkernels generate ... | head`
        sys.stderr.close()
        raise typer.Exit(1) from None
    except UnicodeDecodeError as error:
        _end(f"what was given as text is not UTF-8: {error}")
    except ModuleNotFoundError as error:
        if (error.name or "labkernels").startswith("labkernels"):
            raise
        _end(f"{error.name} is not installed: pip install {error.name.partition('.')[0]}")
    except FileExistsError as error:
        _end(f"{error.filename} is a file, and a folder is needed there")
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        _end(
            f"out of memory: {str(error).splitlines()[0] if str(error) else type(error).__name__}; take a smaller --batch-size or context, "
            "--quantize int4 or --optimize-memory (`labkernels estimate-memory` says what each needs)"
        )


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings of this package without file and line, which are for those who write programs."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message, category, filename, lineno, file=None, line=None) -> None:
            if Path(filename).is_relative_to(_PACKAGE):
                typer.echo(str(message), err=True)
            else:
                shown(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def out_of_memory(error: BaseException) -> bool:
    """Is it torch's way to say that a GPU, or the CPU's allocator, has no more?"""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _end(message: str) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(1) from None
