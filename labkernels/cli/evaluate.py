"""`labkernels evaluate`: what each quantisation costs a model, on text that it was not trained on."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from labkernels.cli.complaints import complaints
from labkernels.cli.options import Choices, Device, Json, Model, Scheme


def evaluate(
    model: Model,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="what to compare, with commas between: none, int8, fp8, int4, nf4; then -mse (scales that err least) or -gptq (calibrated), then the group, -32, "
            "-64 or -128; then +int8 or +fp8 for keys and values, as in none,int4-gptq-64+int8; default: a dozen of them",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="prepared tokens (`labkernels data prepare`), of which the validation split is read, and of the other the calibration; default: those in the cache "
            "that were made with the model's tokenizer",
            show_default=False, file_okay=False,
        ),
    ] = None,  # fmt: skip
    text: Annotated[Path | None, typer.Option(help="a file of text instead of --data; its first quarter is for calibration", exists=True, dir_okay=False)] = None,
    tokens: Annotated[int, typer.Option(min=1, help="held-out tokens to read, about")] = 200_000,
    calibration_tokens: Annotated[int, typer.Option(min=1, help="tokens that GPTQ reads, about")] = 131_072,
    seq_len: Annotated[int | None, typer.Option(min=2, help="tokens of a window; default: what the model takes, at most 2048", show_default=False)] = None,
    context: Annotated[int | None, typer.Option(min=1, help="tokens in the cache whose memory is counted; default: what the model takes", show_default=False)] = None,
    head: Annotated[Scheme | None, typer.Option(help="quantise the head of quantised models, too", show_default=False)] = None,
    speed: Annotated[bool, typer.Option("--speed", help="measure tokens a second of each, on an NVIDIA GPU")] = False,
    plot: Annotated[Path | None, typer.Option(help="draw quality over memory and speed into this file (.png, .svg, .pdf)", dir_okay=False)] = None,
    out: Annotated[Path | None, typer.Option(help="write the table into this .csv file, on a GPU with its name and versions", dir_okay=False)] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Compare a model's quantisations: perplexity, bits per byte, memory and, on a GPU, speed."""
    from labkernels.cli.loading import check_memory
    from labkernels.errors import ArgumentError
    from labkernels.lab.environment import environment
    from labkernels.llm.quantisation import pareto, quality
    from labkernels.llm.quantisation.quantized import described_scheme, load_model, local_folder

    with complaints():
        choices = Choices(quantize=Scheme.none, device=device, context=2, batch_size=1)
        for option, path in (("--plot", plot), ("--out", out)):
            if path is not None and not path.parent.is_dir():
                raise ArgumentError(f"{option}: there is no folder {path.parent}")
            if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
                raise ArgumentError(f"{option}: {path} cannot be written")
        if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
            raise ArgumentError(f"--plot is {plot}; its name must end in .png, .svg or .pdf")
        on_gpu, folder = choices.on_gpu, local_folder(model)
        default = ["none"] if described_scheme(folder) else quality.RECIPES
        recipes = [quality.Recipe.parse(each) for each in (quantize.split(",") if quantize is not None else default)]
        if described_scheme(folder) and any(recipe.scheme for recipe in recipes):
            raise ArgumentError(f"{model} is quantised already, to {described_scheme(folder)}; give the folder that it was made of")
        if speed and not on_gpu:
            raise ArgumentError("--speed: tokens a second are measured on an NVIDIA GPU; leave it out")
        check_memory(str(folder), choices)
        held_out, calibration = _texts(folder, data, text, tokens, calibration_tokens, seq_len)
        wanted = "cuda" if device is None and on_gpu else device
        table = quality.compare(
            lambda: load_model(folder, device=wanted)[0], recipes, held_out, calibration, head=None if head in (None, Scheme.none) else head.value,
            context=context, speed=speed, progress=True,
        )  # fmt: skip
        if out is not None:
            where = environment() if on_gpu else {}
            table.assign(model=folder.resolve().name, text=held_out.source, **where).to_csv(out, index=False, float_format="%.6g")
        if plot is not None:
            pareto.plot(table).save(plot)
        if as_json:
            rows = json.loads(table.to_json(orient="records", double_precision=15))  # what is not known is null
            typer.echo(json.dumps({"model": model, "text": held_out.source, "windows": len(held_out.tokens), "seq_len": held_out.tokens.shape[1] - 1, "rows": rows}))
            return
        typer.echo(f"{model}: {held_out.tokens[:, 1:].numel():,} tokens, {held_out.source}")
        typer.echo("\n".join(quality.summary(table)))


def _texts(folder: Path, data: Path | None, text: Path | None, tokens: int, calibration_tokens: int, seq_len: int | None):
    """Held-out windows, and those to calibrate with."""
    from labkernels.cli.loading import describe
    from labkernels.errors import ArgumentError
    from labkernels.llm.quantisation import held_out
    from labkernels.llm.data.token_dataset import TokenDataset
    from labkernels.llm.data.tokenizer import Tokenizer

    if data is not None and text is not None:
        raise ArgumentError("--data and --text are both given; leave one out")
    config, tokenizer = describe(str(folder))[0], Tokenizer.load(folder)
    if seq_len is not None and seq_len > config.max_seq_len:
        raise ArgumentError(f"--seq-len is {seq_len}; the model takes at most {config.max_seq_len} tokens")
    seq = seq_len or min(config.max_seq_len, 2048)
    if text is not None:
        return held_out.of_text(text, tokenizer, seq, tokens, calibration_tokens)
    found = TokenDataset.open(data) if data is not None else held_out.dataset_of(tokenizer)
    return held_out.of_dataset(found, "validation", tokenizer, seq, tokens), held_out.of_dataset(found, "train", tokenizer, seq, calibration_tokens)
