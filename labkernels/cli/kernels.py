"""`labkernels bench`, `resources` and `info`: the kernels, what they take, and what they run on here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from labkernels.cli.complaints import complaints
from labkernels.cli.options import BatchSize, Choices, Device, FlashAttention, Json, MaxSpeed, OptimizeMemory, Quantize
from labkernels.cli.speed import measure
from labkernels.errors import ArgumentError


def bench(
    ops: Annotated[list[str] | None, typer.Argument(help="operations by name; default: all")] = None,
    record: Annotated[
        Path | None, typer.Option(help="write the figures of the book into this folder; needs a GPU", file_okay=False)
    ] = None,
    budget_ms: Annotated[float, typer.Option(min=1.0, help="with --record: what the samples of a row may take")] = 100.0,
    longest_call_ms: Annotated[float, typer.Option(min=1.0, help="with --record: a call expected to take longer is left out")] = 800.0,
    seconds: Annotated[float, typer.Option(min=1.0, help="with --record: after so long no further operation is begun")] = float("inf"),
    model: Annotated[
        str | None, typer.Option(help="time a model's answers instead: a folder, or a preset with random weights, such as llama-3.2-1b")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="with --model: tokens of each prompt")] = 64,
    new_tokens: Annotated[int, typer.Option(min=2, help="with --model: tokens of each answer")] = 128,
    batch_size: BatchSize = 1,
    quantize: Quantize = None,
    max_speed: MaxSpeed = False,
    optimize_memory: OptimizeMemory = False,
    flash_attention: FlashAttention = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Time every variant of an operation beside its peers and the limit (without a GPU, show what is recorded), or a model's answers."""
    from labkernels.lab import bench as benchmark
    from labkernels.operation import ops as registry

    with complaints():
        if model is not None:
            if ops or record is not None:
                raise ArgumentError("bench: --model goes neither with operations nor with --record")
            choices = Choices(quantize, max_speed, optimize_memory, flash_attention, batch_size, prompt_tokens + new_tokens, None, device)
            found = measure(model, choices, prompt_tokens, new_tokens)
            typer.echo(json.dumps(found) if as_json else "\n".join(f"{name:<16}{_shown(value)}" for name, value in found.items()))
            return
        if unknown := set(ops or ()) - set(registry):
            raise ArgumentError(f"no operation is called {sorted(unknown)[0]!r}; there are {', '.join(registry)}")
        if record is not None:
            benchmark.record(record, ops or list(registry), budget_ms, longest_call_ms, seconds, say=typer.echo)
            return
        if as_json:
            typer.echo(json.dumps({name: json.loads(benchmark.bench(name).frame.to_json(orient="records")) for name in ops or registry}))
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


def info(as_json: Json = False) -> None:
    """Where this machine runs kernels, and with what."""
    from labkernels.lab.machine import describe_machine

    if as_json:
        typer.echo(json.dumps(describe_machine()))
        return
    for name, value in describe_machine().items():
        typer.echo(f"{name:<20} {value}")


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
