"""`labkernels serve`: a model behind OpenAI's HTTP interface."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from labkernels.cli.complaints import complaints
from labkernels.cli.options import BatchSize, Cache, Choices, Context, Device, FlashAttention, MaxSpeed, Model, OptimizeMemory, Quantize


def serve(
    model: Model,
    host: Annotated[
        str, typer.Option(help="the address to listen on; 127.0.0.1 is this machine alone, 0.0.0.0 lets others in")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="the port to listen on; 0 takes a free one")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="LABKERNELS_API_KEY",
            help="clients must send it as Authorization: Bearer KEY; better in the variable, where `ps` does not show it",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="what clients call the model; default: the folder's name")] = None,
    batch_size: BatchSize = 16,
    quantize: Quantize = None,
    max_speed: MaxSpeed = False,
    optimize_memory: OptimizeMemory = False,
    flash_attention: FlashAttention = None,
    context: Context = None,
    cache: Cache = None,
    device: Device = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="the longest answer that a client may ask for")] = 4096,
    max_request_bytes: Annotated[int, typer.Option(min=1, help="the longest request; longer ones are refused (413) unread")] = 1 << 20,
    max_queue: Annotated[
        int,
        typer.Option(min=0, help="answers that may wait beside those that are being written; then clients are told to come again (429)"),
    ] = 256,
    grace: Annotated[int, typer.Option(min=0, help="seconds that answers have to come to their end after Ctrl-C or SIGTERM")] = 30,
) -> None:
    """Serve a model as OpenAI's interface has it: /v1/completions, /v1/chat/completions, /v1/models, /metrics, /health."""
    from labkernels.cli.loading import describe, load_engine
    from labkernels.errors import ToolchainError

    with complaints():
        if missing := [each for each in ("fastapi", "uvicorn", "prometheus_client") if find_spec(each) is None]:
            raise ToolchainError(f"{missing[0]} is not installed: pip install 'labkernels[serve]'")
        from labkernels.llm.server import Limits, create_app, run

        choices = Choices(quantize, max_speed, optimize_memory, flash_attention, batch_size, context, cache, device)
        if context is None:
            choices = replace(choices, context=min(describe(model)[0].max_seq_len, 8192))
        _check_address(host, port)
        limits = Limits(body_bytes=max_request_bytes, new_tokens=max_new_tokens, queue=max_queue)
        engine = load_engine(model, choices)
        app = create_app(
            engine, name or Path(model).resolve().name if Path(model).is_dir() else name or model, limits=limits, api_key=api_key
        )
        if api_key is None and not _loopback(host):
            typer.echo(f"anybody who reaches {host} can use this server: --api-key lets in only those who have it", err=True)
        service = app.state.service
        typer.echo(f"serving {model} as {service.name!r}: {service.longest} tokens of context, {batch_size} answers at a time", err=True)
        run(app, host, port, grace_s=grace)


def _check_address(host: str, port: int) -> None:
    """Raises ArgumentError for an address that cannot be listened on: said now, and not when a large model has been loaded."""
    from labkernels.errors import ArgumentError

    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        free = "; --port 0 takes a free one" if error.errno in (errno.EADDRINUSE, errno.EACCES) else ""
        raise ArgumentError(f"--host {host} --port {port}: {str(error.strerror or error).partition(' (while')[0]}{free}") from None


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
