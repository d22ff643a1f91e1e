"""A model's folder to an engine: what it will need is compared with what there is, then it is loaded, and a bar shows how far it is."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import typer

from labkernels.cli.options import Choices
from labkernels.cli.sizes import readable
from labkernels.errors import ArgumentError, LabKernelsError


class TooLittleMemory(LabKernelsError):
    """The model does not fit, by the estimate."""


def describe(model: str) -> tuple:
    """(config, folder or None, stored dtype, scheme if quantised or None) of a folder, a preset's name or a hub's, from the config alone."""
    import torch

    from labkernels.llm import pretrained
    from labkernels.llm.quantisation import quantized
    from labkernels.llm.config import PRESETS, ModelConfig

    if model in PRESETS and not Path(model).is_dir():
        return ModelConfig.preset(model), None, torch.bfloat16, None
    file = Path(model) / "config.json" if Path(model).is_dir() else config_of_hub(model)
    described = pretrained._json(file)
    config = pretrained.config_from_hugging_face(described, str(file))
    stored = getattr(torch, str(described.get("dtype") or described.get("torch_dtype") or "bfloat16").removeprefix("torch."), None)
    if stored not in (torch.float32, torch.float16, torch.bfloat16):
        stored = torch.bfloat16
    return config, file.parent, stored, quantized.described_scheme(file.parent)


def config_of_hub(name: str) -> Path:
    """The config.json of a hub's model, which alone is downloaded. Raises PretrainedError with the way around."""
    from labkernels.llm.config import PRESETS
    from labkernels.llm.pretrained import PretrainedError

    if Path(name).exists():
        raise PretrainedError(f"{name} is a file; a model is a folder with config.json and its weights")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise PretrainedError(
            f"{name}: there is no such folder, it is no hub's name such as meta-llama/Llama-3.2-1B, and none of {', '.join(PRESETS)}"
        )
    around = f"without a network, download it elsewhere (`hf download {name} --local-dir FOLDER`) and give the folder"
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each attempt
    try:
        from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

        if isinstance(kept := try_to_load_from_cache(name, "config.json"), str):
            return Path(kept)
        if not urllib.request.getproxies():
            socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, 443)  # says at once that there is no network; the hub's library tries six times
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:  # of the network, of the hub, of access: dozens of classes of several libraries
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise PretrainedError(
            f"{name}: there is no such folder, and its config.json cannot be downloaded ({type(error).__name__}: {reason}); {around}"
        ) from None


def needed(model: str, choices: Choices):
    """What inference will need, as `Memory`, by the estimate."""
    import torch

    from labkernels.llm.estimate import inference_memory

    config, _, stored, scheme = describe(model)
    dtype = torch.bfloat16 if choices.on_gpu and stored == torch.float32 else stored
    cache = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}.get(choices.cache_dtype)
    context = min(choices.context or config.max_seq_len, config.max_seq_len)
    return inference_memory(
        config,
        choices.batch_size,
        context,
        dtype=dtype,
        quantize=scheme or choices.scheme,
        cache_dtype=cache,
        prefill_tokens=choices.chunk_tokens,
        on_gpu=choices.on_gpu,
    )


def free_memory(choices: Choices) -> tuple[int, str]:
    """Bytes that are free where the model will lie, and what it is called."""
    import torch

    if choices.on_gpu:
        return torch.cuda.mem_get_info(torch.device(choices.device or "cuda"))[0], "the GPU"
    import psutil

    return psutil.virtual_memory().available, "this machine"


def check_memory(model: str, choices: Choices) -> None:
    """Raises TooLittleMemory, which says what would fit. Without --context the cache takes what is left, but at least a sequence of 2048 tokens."""
    least = choices if choices.context is not None else replace(choices, context=2048, batch_size=1)
    estimate, (free, where) = needed(model, least), free_memory(choices)
    if estimate.peak <= free:
        return
    parts = ", ".join(f"{name} {readable(size)}" for name, size in estimate.items())
    message = f"{model} needs {readable(estimate.peak)} by the estimate ({parts}), and {where} has {readable(free)} free"
    smaller = replace(least, optimize_memory=True, max_speed=False, quantize=None, context=min(least.context, 2048))
    other = needed(model, smaller).peak
    tokens = f" --context {smaller.context}" if choices.context != smaller.context else ""
    if other < estimate.peak:
        message += f"; with --optimize-memory{tokens} it needs {readable(other)}"
    raise TooLittleMemory(message + ("" if other <= free else "; take a smaller model"))


def load_engine(model: str, choices: Choices, show: bool = True, text: bool = True):
    """The engine of a folder, or of a hub's model. Raises what `Engine.from_pretrained` does, and TooLittleMemory before it has begun.

    text: it will be given text, so a tokenizer must be there.
    """
    import torch

    from labkernels.llm.inference.cached import CachedRunner
    from labkernels.llm.inference.engine import Engine
    from labkernels.llm.inference.fused import FusedRunner

    choices.on_gpu  # a device that is none is told first
    config, folder, _, stored = describe(model)
    if folder is None:
        raise ArgumentError(f"{model} is a shape without weights, for estimate-memory, bench and train; give a folder, or a hub's name")
    if choices.context is not None and choices.context > config.max_seq_len:
        raise ArgumentError(f"--context is {choices.context}; {model} takes at most {config.max_seq_len} tokens")
    if text and Path(model).is_dir() and not (folder / "tokenizer.json").is_file():
        raise _no_tokenizer(model)
    check_memory(model, choices)
    if choices.on_gpu and choices.device not in (None, "cuda"):
        torch.cuda.set_device(choices.device)
    scheme = None if stored else choices.scheme  # a quantised folder stays what it is, unless asked for by name
    if choices.quantize is not None:
        scheme = choices.scheme
    with loading(model, choices, show):
        engine = Engine.from_pretrained(
            model, scheme, device="cuda" if choices.device is None and choices.on_gpu else choices.device, **choices.engine_options()
        )
    if text and engine.tokenizer is None:  # of a hub's model
        raise _no_tokenizer(model)
    if choices.flash_attention and isinstance(engine.runner, CachedRunner):
        raise ArgumentError(f"--flash-attention: the engine {FusedRunner.refusal(engine.model, engine.cache)}; leave the option out")
    if choices.flash_attention and not choices.on_gpu:
        typer.echo("--flash-attention: without a GPU the kernels run in the emulator, as exact and much slower", err=True)
    return engine


def _no_tokenizer(model: str) -> ArgumentError:
    return ArgumentError(
        f"{model}: there is no tokenizer.json, so text cannot become tokens; put the model's own there, and its tokenizer_config.json "
        "(where it came with a tokenizer.model alone, transformers' AutoTokenizer writes both)"
    )


@contextlib.contextmanager
def loading(model: str, choices: Choices, show: bool = True) -> Iterator[None]:
    """A bar of the bytes that are there already, where somebody watches stderr."""
    if not show or not sys.stderr.isatty():
        yield
        return
    from tqdm import tqdm

    used, before = _used(choices), 0
    ended = threading.Event()
    with tqdm(total=needed(model, choices)["weights"], desc="loading", unit="B", unit_scale=True, leave=False) as bar:

        def watch() -> None:
            nonlocal before
            while not ended.wait(0.1):
                now = max(before, min(used(), bar.total))
                bar.update(now - before)
                before = now

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _used(choices: Choices) -> Callable[[], int]:
    """Bytes that this process holds more than now."""
    import torch

    if choices.on_gpu:
        device = torch.device(choices.device or "cuda")
        start = torch.cuda.memory_allocated(device)
        return lambda: torch.cuda.memory_allocated(device) - start
    import psutil

    process = psutil.Process()
    first = process.memory_info().rss
    return lambda: process.memory_info().rss - first
