"""`labkernels train`: its options are the fields of `TrainConfig`, and their help is what stands behind each field there."""
from __future__ import annotations

import ast
import contextlib
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from labkernels.cli.complaints import complaints
from labkernels.cli.options import Json
from labkernels.errors import ArgumentError

_AS_PAIRS = ("model", "kernels")  # fields that take NAME=VALUE, several times
_SOURCE = Path(__file__).parents[1] / "llm" / "training" / "train_config.py"
_FIELD = re.compile(r"^    # (?P<panel>.+)$|^    (?P<name>\w+): (?P<kind>[^=\n]+) = (?P<default>.+?)  # (?P<help>.+)$", re.MULTILINE)
_REFUSED = re.compile(r"^(?:TrainConfig|Trainer): (\w+) (?=is |goes )")  # a field that is refused
_KINDS = {"str": str, "int": int, "float": float, "bool": bool, "Any": str, "dict[str, Any]": str, "tuple[float, float]": tuple[float, float]}


def train(as_json: bool, **options: Any) -> None:
    """Train a model on this machine; with checkpoints in --folder the same command continues it."""
    with complaints(), in_options():
        if not as_json:
            train_with(options)
            return
        with contextlib.redirect_stdout(sys.stderr):
            trainer = train_with(options)
        if int(os.environ.get("RANK", "0")) == 0:
            typer.echo(json.dumps(described(trainer)))


@contextlib.contextmanager
def in_options() -> Iterator[None]:
    """What is refused is named as on the command line: not "TrainConfig: batch_size is 0" but "--batch-size is 0"."""
    try:
        yield
    except ArgumentError as error:
        text = str(error).replace("ModelConfig.preset: name is", "TrainConfig: preset is")
        if "neither steps nor minutes" in text:
            raise ArgumentError("--minutes or --steps is needed: it says when the training ends, as in labkernels train --minutes 5") from None
        raise ArgumentError(_REFUSED.sub(lambda found: f"{_option(found[1])} ", text)) from None


def described(trainer) -> dict[str, Any]:
    """What a training has come to, for programs; of the validation the last."""
    seen = next((row for row in reversed(trainer.rows) if "validation_loss" in row), {})
    losses = [row["loss"] for row in trainer.rows if "loss" in row]
    folder = trainer.config.folder
    exported = Path(folder) / "model" if folder else None
    return {
        "model": str(exported) if exported and (exported / "config.json").is_file() else None, "step": trainer.step, "tokens": trainer.tokens,
        "seconds": trainer.seconds, "loss": losses[-1] if losses else None, "validation_loss": seen.get("validation_loss"),
        "bits_per_byte": seen.get("bits_per_byte"),
    }  # fmt: skip


def train_with(options: dict[str, Any]):
    """Train as the options say; under torchrun on several GPUs. Returns the trainer."""
    from labkernels.llm.parallel.distributed import train
    from labkernels.llm.training.train import TrainConfig

    options = {**options, "model": pairs("--model", options["model"]), "kernels": _kernels(options["kernels"])}
    return train(TrainConfig(**options))


def pairs(option: str, given: list[str] | None) -> dict[str, Any]:
    """["num_layers=2", "qk_norm=true"] as {"num_layers": 2, "qk_norm": True}."""
    found = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not sign:
            raise ArgumentError(f"{option} is {text!r}; it must be NAME=VALUE")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _kernels(given: list[str] | None) -> Any:
    if not given:
        return "auto"
    return given[0] if len(given) == 1 and "=" not in given[0] else pairs("--kernels", given)


def _signature() -> inspect.Signature:
    """Of a function with an option for each field of TrainConfig, as typer reads it. From the source: importing it takes seconds of PyTorch."""
    parameters, panel = [], None
    for found in _FIELD.finditer(_SOURCE.read_text()):
        name = found["name"]
        if found["panel"]:
            panel = found["panel"]
            continue
        kind, default = _KINDS[found["kind"].removesuffix(" | None")], found["default"]
        if name in _AS_PAIRS:
            kind, default = list[str] | None, "None"
        elif found["kind"].endswith(" | None"):
            kind = kind | None
        option = typer.Option(help=_help(name, found["help"]), rich_help_panel=panel)
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=ast.literal_eval(default), annotation=Annotated[kind, option])
        )
    parameters.append(inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json))
    return inspect.Signature(parameters)


def _help(name: str, text: str) -> str:
    if name == "model":
        return "NAME=VALUE, a field of the preset to change, such as num_layers=2; can be given several times"
    text = text.replace("or a mapping of operations to them", "or an operation's alone, such as attention=torch; can be given several times")
    return re.sub(r"`(\w+)`", lambda found: _option(found[1]), text).replace("None: ", "default: ")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


train.__signature__ = _signature()
train.__annotations__ = {p.name: p.annotation for p in train.__signature__.parameters.values()}
