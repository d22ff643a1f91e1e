"""`labkernels estimate-memory`: what a model will need, from its config alone."""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated

import typer

from labkernels.cli.complaints import complaints
from labkernels.cli.options import Cache, Json
from labkernels.cli.sizes import readable


class Dtype(str, Enum):
    """What weights are stored as."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"
    fp8 = "fp8"
    int4 = "int4"
    nf4 = "nf4"


def estimate_memory(
    model: Annotated[
        str,
        typer.Argument(
            help="a Hugging Face folder, a hub's name, of which the config alone is read, or a preset: llama-3.2-1b, llama-2-7b, ..."
        ),
    ],
    dtype: Annotated[
        Dtype,
        typer.Option(
            help="what weights are stored as; 8 and 4 bits: those of the layers, beside 16 for embedding and head; auto: as the folder has them"
        ),
    ] = Dtype.auto,
    batch_size: Annotated[int, typer.Option(min=1, help="sequences at a time")] = 1,
    context: Annotated[
        int | None, typer.Option(min=1, help="tokens of each sequence, prompt and answer; default: all that the model takes")
    ] = None,
    cache: Cache = None,
    training: Annotated[
        bool, typer.Option("--training", help="a step of training instead of generating: gradients, AdamW's states, activations")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say how many bytes a model takes, by part, before anything is loaded."""
    import torch

    from labkernels.cli.loading import describe
    from labkernels.errors import ArgumentError
    from labkernels.llm.estimate import inference_memory, parameters, training_memory

    with complaints():
        config, _, stored, scheme = describe(model)
        if dtype.value in ("float32", "bfloat16", "float16"):
            stored, scheme = getattr(torch, dtype.value), None
        elif dtype is not Dtype.auto:
            stored, scheme = torch.bfloat16 if stored == torch.float32 else stored, dtype.value
        tokens = config.max_seq_len if context is None else context
        if tokens > config.max_seq_len:
            raise ArgumentError(f"--context is {tokens}; {model} takes at most {config.max_seq_len} tokens")
        if training and scheme is not None:
            raise ArgumentError(f"--training goes with float32, bfloat16 or float16 weights, not with {scheme}")
        if training and cache is not None:
            raise ArgumentError("--training has no keys and values to store: leave out --cache")
        if training:
            found = training_memory(config, batch_size, tokens, dtype=stored)
        else:
            cached = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}[cache.value] if cache else None
            found = inference_memory(config, batch_size, tokens, dtype=stored, quantize=scheme, cache_dtype=cached)
        weights = scheme or str(stored).removeprefix("torch.")
        free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
        if as_json:
            shown = {"model": model, "parameters": parameters(config), "dtype": weights, "batch_size": batch_size, "context": tokens}
            typer.echo(json.dumps({**shown, "bytes": dict(found), "peak_bytes": found.peak, "gpu_free_bytes": free}))
            return
        typer.echo(
            f"{model}: {parameters(config) / 1e6:,.0f} million parameters, {weights}, {batch_size} x {tokens} tokens"
            + (", training" if training else "")
        )
        for name, size in (*found.items(), ("peak", found.peak)):
            typer.echo(f"{name:<12}{readable(size):>10}")
        if free is not None:
            typer.echo(f"this GPU has {readable(free)} free: it {'fits' if found.peak <= free else 'does not fit'}")
