"""`labkernels quantize`: a folder's weights in 8 or 4 bits, in a folder of their own."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from labkernels.cli.complaints import complaints
from labkernels.cli.options import Choices, Device, Json, Model, Scheme
from labkernels.cli.sizes import readable


def quantize(
    model: Model,
    out: Annotated[Path, typer.Argument(help="the folder for the quantised model; new, or empty unless --overwrite", file_okay=False)],
    scheme: Annotated[
        Scheme, typer.Option("--to", help="int8 and fp8: a scale for each row; int4 and nf4: for each group of a row")
    ] = Scheme.int4,
    group_size: Annotated[
        int | None,
        typer.Option(help="weights that share a scale, of int4 and nf4: 32, 64 or 128; smaller is more exact and a little larger"),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="a file of text like what the model will read: weights are rounded so that its products change least (GPTQ), which takes longer "
            "and the memory of the whole model; without it, to the nearest number",
            show_default=False, exists=True, dir_okay=False,
        ),
    ] = None,  # fmt: skip
    calibration_tokens: Annotated[int, typer.Option(min=1, help="tokens of --calibration to read, about")] = 131_072,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a model that is in the folder")] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Quantise a model layer by layer, and write it with its tokenizer, to be loaded without the original."""
    from labkernels.cli.loading import check_memory, loading
    from labkernels.errors import ArgumentError
    from labkernels.llm.quantisation.calibrate import quantize_calibrated
    from labkernels.llm.quantisation.quantized import check_scheme, described_scheme, load_model, local_folder, save_quantized

    with complaints():
        if scheme is Scheme.none:
            raise ArgumentError("--to is none; it must be int8, fp8, int4 or nf4")
        source = local_folder(model)
        if out.exists() and source.resolve() == out.resolve():
            raise ArgumentError(f"{out} is the model's own folder; give another one for the quantised model")
        if out.is_dir() and any(out.iterdir()) and not overwrite:
            raise ArgumentError(f"{out} is not empty; give another folder, or --overwrite")
        if described_scheme(source):
            raise ArgumentError(f"{model} is quantised already, to {described_scheme(source)}; give the folder that it was made of")
        try:
            check_scheme(scheme.value, group_size)
        except ArgumentError as error:
            raise ArgumentError(str(error).replace("from_pretrained: group_size", "--group-size")) from None
        samples = None if calibration is None else _samples(source, calibration, calibration_tokens)
        choices = Choices(quantize=scheme if samples is None else Scheme.none, device=device, context=2, batch_size=1)
        check_memory(str(source), choices)
        with loading(str(source), choices):
            made, _ = load_model(
                source,
                scheme.value if samples is None else None,
                group_size=group_size if samples is None else None,
                device="cuda" if device is None and choices.on_gpu else device,
            )
        if samples is not None:
            quantize_calibrated(made, samples, scheme.value, group_size, progress=True)
        save_quantized(made, out, source=source)
        before, after = (sum(path.stat().st_size for path in where.glob("*.safetensors")) for where in (source, out))
        if as_json:
            typer.echo(json.dumps({"model": model, "out": str(out), "scheme": scheme.value, "bytes_before": before, "bytes_after": after}))
        else:
            typer.echo(
                f"{out}: {scheme.value}, {readable(after)} of {readable(before)}; "
                f"next: {shlex.join(['labkernels', 'generate', str(out), 'Once upon a time'])}"
            )


def _samples(folder: Path, text: Path, tokens: int):
    """Windows of the text in the model's tokens, (n, seq) int64."""
    from labkernels.cli.loading import describe
    from labkernels.llm.quantisation import held_out
    from labkernels.llm.data.tokenizer import Tokenizer

    longest = min(describe(str(folder))[0].max_seq_len, 2048)
    return held_out.of_whole_text(text, Tokenizer.load(folder), longest, tokens).tokens[:, :-1]
