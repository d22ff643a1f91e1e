"""`labkernels ...` on the command line: here is the list of commands, each file beside this one holds those of one purpose."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from labkernels.cli import book, data, evaluate, export_onnx, generate, kernels, lab, memory, quantize, serve, train

app = typer.Typer(no_args_is_help=True, add_completion=False)


def _version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"labkernels {version('labkernels')}")
        except PackageNotFoundError:  # run from a source tree that is not installed
            typer.echo("labkernels, from a source tree that is not installed")
        raise typer.Exit


@app.callback()
def main(shown: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False) -> None:
    """The LabKernels workbook: its labs, its kernels, its language models."""


app.command()(lab.lab)
app.command()(generate.generate)
app.command()(generate.chat)
app.command()(serve.serve)
app.command()(memory.estimate_memory)
app.command()(quantize.quantize)
app.command()(evaluate.evaluate)
app.command()(export_onnx.export_onnx)
app.command()(book.book)
app.command()(book.course)
app.command()(kernels.bench)
app.command()(kernels.resources)
app.command()(kernels.info)
app.command()(train.train)
app.add_typer(data.app, name="data")
