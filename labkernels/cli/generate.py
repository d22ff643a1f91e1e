"""`labkernels generate` and `labkernels chat`: text from a model."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from labkernels.cli.complaints import complaints
from labkernels.cli.options import (
    BatchSize,
    Cache,
    Choices,
    Context,
    Device,
    FlashAttention,
    Json,
    MaxSpeed,
    Model,
    OptimizeMemory,
    Quantize,
    Seed,
)

NewTokens = Annotated[int, typer.Option(min=1, help="the longest answer, in tokens; it may end before")]
Temperature = Annotated[
    float, typer.Option(min=0.0, help="0 takes the likeliest token each time; 1 draws by the model's probabilities; more is wilder")
]
TopK = Annotated[int, typer.Option(min=0, help="draw from the so many likeliest tokens; 0: from all")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="draw from the fewest tokens that make up this probability; 1: from all")]
MinP = Annotated[float, typer.Option(min=0.0, max=1.0, help="draw from tokens with at least this share of the likeliest's probability")]
Penalty = Annotated[float, typer.Option(min=1e-6, help="above 1: tokens that stand in the text already become less likely")]
Stop = Annotated[list[str] | None, typer.Option(help="end the answer where this text comes; may be given several times")]


def generate(
    model: Model,
    prompts: Annotated[list[str] | None, typer.Argument(help="one text or several; - reads one from standard input")] = None,
    file: Annotated[Path | None, typer.Option(help="read prompts from this file, one a line", exists=True, dir_okay=False)] = None,
    max_new_tokens: NewTokens = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    stop: Stop = None,
    seed: Seed = None,
    batch_size: BatchSize = 8,
    quantize: Quantize = None,
    max_speed: MaxSpeed = False,
    optimize_memory: OptimizeMemory = False,
    flash_attention: FlashAttention = None,
    context: Context = None,
    cache: Cache = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Continue one prompt, shown as it is written, or several at a time."""
    from labkernels.cli.loading import load_engine
    from labkernels.errors import ArgumentError

    with complaints():
        texts = [sys.stdin.read() if text == "-" else text for text in prompts or ()]
        texts += [line for line in file.read_text(encoding="utf-8").splitlines() if line] if file else []
        if not texts:
            raise ArgumentError("generate: no prompt is given; write it behind the model, or name a file of them with --file")
        choices = Choices(quantize, max_speed, optimize_memory, flash_attention, min(batch_size, len(texts)), context, cache, device)
        settings = {
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty, "seed": seed,
            "stop": tuple(stop or ()),
        }  # fmt: skip
        room = room_for(model, texts, max_new_tokens, context)
        engine = load_engine(model, replace(choices, context=room if context is None else context))
        if len(texts) == 1 and not as_json:
            show(engine.generate(texts[0], max_new_tokens, stream=True, **settings))
            return
        answers = complete(engine, texts, max_new_tokens, settings)
        if as_json:
            typer.echo(json.dumps({"model": model, "answers": [described(text, answer) for text, answer in zip(texts, answers)]}))
            return
        for text, answer in zip(texts, answers):
            typer.echo(f"> {text}\n{answer.text}\n")


def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(help="what the model is told before the conversation begins")] = None,
    max_new_tokens: NewTokens = 512,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    quantize: Quantize = None,
    max_speed: MaxSpeed = False,
    optimize_memory: OptimizeMemory = False,
    flash_attention: FlashAttention = None,
    context: Context = None,
    cache: Cache = None,
    device: Device = None,
) -> None:
    """Talk with a model. An empty line or the end of input ends it, Ctrl-C an answer, /new the conversation so far."""
    from labkernels.cli.loading import describe, load_engine
    from labkernels.errors import ArgumentError

    with complaints():
        choices = Choices(quantize, max_speed, optimize_memory, flash_attention, 1, context, cache, device)
        if context is None:
            choices = replace(choices, context=min(describe(model)[0].max_seq_len, 8192))
        engine = load_engine(model, choices)
        if not engine.tokenizer.has_chat_template:
            raise ArgumentError(
                f"{model} has no chat template, so it was not made for conversations; `labkernels generate` continues a text"
            )
        first = [{"role": "system", "content": system}] if system else []
        settings = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
        }
        if first and _left(engine, [*first, {"role": "user", "content": "a"}]) < 1:
            raise ArgumentError(f"--system is longer than the context of {engine.max_seq_len} tokens")
        said = list(first)
        if sys.stdin.isatty():
            typer.echo("(an empty line ends this, Ctrl-C an answer; /new forgets what was said)", err=True)
        while text := _ask():
            if text == "/new":
                said = list(first)
                continue
            asked = _shortened(engine, [*said, {"role": "user", "content": text}], len(first), max_new_tokens)
            if asked is None:
                typer.echo(f"(that is longer than the context of {engine.max_seq_len} tokens: write less)", err=True)
                continue
            said = asked
            answer = show(engine.chat(said, min(max_new_tokens, _left(engine, said)), stream=True, **settings))
            said.append({"role": "assistant", "content": answer})


def room_for(model: str, texts: list[str], max_new_tokens: int, context: int | None = None) -> int | None:
    """Tokens of the longest prompt with its answer; None without a tokenizer in a folder here. Raises ArgumentError if the model takes fewer."""
    from labkernels.cli.loading import describe
    from labkernels.errors import ArgumentError
    from labkernels.llm.data.tokenizer import Tokenizer

    if not (Path(model) / "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.load(model)
    longest, most = max(len(tokenizer.encode(text)) for text in texts), describe(model)[0].max_seq_len
    most, whose = (most, model) if context is None or context > most else (context, "--context")
    if longest + max_new_tokens > most:
        less = f"; there is room for --max-new-tokens {most - longest}" if longest < most else ""
        raise ArgumentError(f"a prompt of {longest} tokens and --max-new-tokens {max_new_tokens} are more than the {most} of {whose}{less}")
    return longest + max_new_tokens


def complete(engine, texts: list[str], max_new_tokens: int, settings: dict) -> list:
    """The answers in the prompts' order, with a bar of the tokens so far where somebody watches stderr."""
    from tqdm import tqdm

    from labkernels.llm.inference.requests import SamplingParams

    seed, requests = settings.pop("seed"), []
    for number, text in enumerate(texts):
        requests.append(engine.submit(text, SamplingParams(max_new_tokens, seed=None if seed is None else seed + number, **settings)))
    with tqdm(total=len(texts), desc="prompts", unit="", leave=False, disable=None) as bar:
        tokens = 0
        while not engine.idle:
            for event in engine.step():
                tokens += event.token is not None
                bar.update(event.finish_reason is not None)
            bar.set_postfix(tokens=tokens, refresh=False)
    return [request.completion() for request in requests]


def described(prompt: str, answer) -> dict:
    """A Completion for programs."""
    return {
        "prompt": prompt, "text": answer.text, "finish_reason": answer.finish_reason, "prompt_tokens": len(answer.prompt_tokens),
        "new_tokens": len(answer.tokens), "seed": answer.seed, "first_token_s": answer.first_token_s, "seconds": answer.seconds,
    }  # fmt: skip


def show(events) -> str:
    """Print an answer as it is written; Ctrl-C ends it. The text."""
    text = ""
    try:
        for event in events:
            text += event.text
            sys.stdout.write(event.text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        events.close()
        if not sys.stdin.isatty():
            raise
    sys.stdout.write("\n")
    return text


def _ask() -> str:
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() then takes the arrow keys
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


def _left(engine, said: list[dict]) -> int:
    return engine.max_seq_len - len(engine.tokenizer.apply_chat_template(said))


def _shortened(engine, said: list[dict], kept: int, max_new_tokens: int) -> list[dict] | None:
    """Without the oldest questions and answers, where the conversation leaves no room for an answer; None if the last question alone leaves none."""
    if _left(engine, said[:kept] + said[-1:]) < 1:
        return None
    wanted = min(max_new_tokens, engine.max_seq_len // 4)
    while _left(engine, said) < wanted and len(said) > kept + 1:
        typer.echo("(the conversation is longer than the context: its oldest question and answer are left out)", err=True)
        said = said[:kept] + said[kept + 2 :]
    return said
