"""`labkernels export-onnx`: a model as an ONNX file."""
from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from labkernels.cli.complaints import complaints
from labkernels.cli.options import Json, Model

MOST = {"float32": 1e-4, "float16": 5e-2}  # by which onnxruntime's logits may differ from PyTorch's, over the largest of those


class Dtype(str, Enum):
    """What the file's weights are stored as."""

    float32 = "float32"
    float16 = "float16"


def export_onnx(
    model: Model,
    file: Annotated[Path, typer.Argument(help="the file to write; weights of more than 1 GB lie in FILE.data beside it", dir_okay=False)],
    cache: Annotated[bool, typer.Option("--cache", help="with keys and values as inputs and outputs, so that a token costs one token")] = False,
    dtype: Annotated[Dtype, typer.Option(help="what weights and activations are stored as")] = Dtype.float32,
    check: Annotated[bool, typer.Option("--check/--no-check", help="compare onnxruntime's logits with PyTorch's")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a file that is there")] = False,
    as_json: Json = False,
) -> None:
    """Write a model as ONNX, with free batch size and length, and compare its logits with ours."""
    import torch

    from labkernels.errors import ArgumentError
    from labkernels.llm import onnx_export
    from labkernels.llm.quantisation.quantized import described_scheme, load_model, local_folder

    with complaints():
        if file.exists() and not overwrite:
            raise ArgumentError(f"{file} is there already; give another name, or --overwrite")
        onnx_export.require("onnx", "onnxscript", *(["onnxruntime"] if check else []))
        folder = local_folder(model)
        if described_scheme(folder):
            raise ArgumentError(f"{model} is quantised, to {described_scheme(folder)}; give the folder that it was made of")
        made = load_model(folder, device="cpu", dtype=torch.float32)[0]
        onnx_export.export(made, file, cache=cache, dtype=getattr(torch, dtype.value))
        found = onnx_export.difference(made, file) if check else None
        if found is not None and not found <= MOST[dtype.value]:
            raise onnx_export.ExportError(f"{file}: onnxruntime's logits differ from PyTorch's by {found:.1e} of the largest; do not use it")
        size = sum(path.stat().st_size for path in (file, file.with_name(file.name + ".data")) if path.is_file())
        if as_json:
            typer.echo(json.dumps({"model": model, "file": str(file), "bytes": size, "cache": cache, "dtype": dtype.value, "difference": found}))
            return
        compared = "not compared" if found is None else f"onnxruntime's logits differ from PyTorch's by at most {found:.1e} of the largest"
        typer.echo(f"{file}: {size / 1e6:.1f} MB, {dtype.value}{', with a cache' if cache else ''}; {compared}")
