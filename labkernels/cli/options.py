"""The options that commands for language models share, each with its help, and what they mean for the engine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

import typer

from labkernels.errors import ArgumentError


class Scheme(str, Enum):
    """What weights are stored as."""

    none = "none"
    int8 = "int8"
    fp8 = "fp8"
    int4 = "int4"
    nf4 = "nf4"


class Cached(str, Enum):
    """What keys and values are stored as."""

    int8 = "int8"
    fp8 = "fp8"


Model = Annotated[
    str,
    typer.Argument(
        help="a Hugging Face folder of a Llama model, a folder that `labkernels quantize` or `labkernels train` wrote, or a hub's name"
    ),
]
Quantize = Annotated[
    Scheme | None,
    typer.Option(
        help="store the layers' weights in 8 or 4 bits, made so one by one while they are loaded: less memory, "
        "more tokens a second, a little less exact"
    ),
]
MaxSpeed = Annotated[
    bool,
    typer.Option(
        "--max-speed",
        help="the most tokens a second: int4 weights unless --quantize says otherwise, and on a Hopper GPU 32 tokens in a row, "
        "by CUDA graphs, between two looks of the CPU",
    ),
]
OptimizeMemory = Annotated[
    bool,
    typer.Option(
        "--optimize-memory",
        help="the least memory: int4 weights unless --quantize says otherwise, keys and values in 8 bits, "
        "and prompts read 256 tokens at a time",
    ),
]
FlashAttention = Annotated[
    bool | None,
    typer.Option(
        "--flash-attention/--no-flash-attention",
        help="attend with this package's kernels, which never hold the scores in memory, or with PyTorch, operation by operation; "
        "default: the kernels on a GPU that has them (Hopper), PyTorch on the CPU, where the kernels run in the emulator: as exact, and slow",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=1, help="sequences computed at a time; the others wait for their turn, and each needs its own room for keys and values"
    ),
]
Context = Annotated[
    int | None, typer.Option(min=2, help="tokens of prompt and answer together for which there is room, at most the model's own")
]
Cache = Annotated[
    Cached | None, typer.Option(help="store keys and values in 8 bits with a scale for each token and head: half of their memory")
]
Device = Annotated[
    str | None, typer.Option(help="where to compute: cuda, cuda:1, cpu; default: the GPU if there is one", show_default=False)
]
Seed = Annotated[
    int | None, typer.Option(help="where the draws begin: the same seed, prompt and settings give the same answer; without it each run draws anew")
]
Json = Annotated[
    bool, typer.Option("--json", help="print one JSON object for programs, instead of text for people; progress goes to stderr in any case")
]


@dataclass(frozen=True)
class Choices:
    """What the options ask of an engine."""

    quantize: Scheme | None = None
    max_speed: bool = False
    optimize_memory: bool = False
    flash_attention: bool | None = None
    batch_size: int = 1
    context: int | None = None
    cache: Cached | None = None
    device: str | None = None

    def __post_init__(self):
        if self.max_speed and self.flash_attention is False:
            raise ArgumentError("--max-speed needs the package's kernels: leave out --no-flash-attention")

    @property
    def on_gpu(self) -> bool:
        import torch

        try:
            kind = "cuda" if self.device is None and torch.cuda.is_available() else torch.device(self.device or "cpu").type
        except RuntimeError:
            raise ArgumentError(f"--device is {self.device!r}; it must be cuda, cuda:NUMBER or cpu") from None
        if kind not in ("cuda", "cpu") or kind == "cpu" and self.device not in (None, "cpu"):
            raise ArgumentError(f"--device is {self.device!r}; it must be cuda, cuda:NUMBER or cpu")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ArgumentError(f"--device is {self.device!r}, and torch sees no NVIDIA GPU here")
        if kind == "cuda" and (torch.device(self.device or "cuda").index or 0) >= torch.cuda.device_count():
            raise ArgumentError(f"--device is {self.device!r}, and torch sees {torch.cuda.device_count()} NVIDIA GPUs here, from cuda:0 on")
        return kind == "cuda"

    @property
    def scheme(self) -> str | None:
        """What the weights become; None leaves them as they are in the folder."""
        if self.quantize is not None:
            return None if self.quantize is Scheme.none else self.quantize.value
        return "int4" if self.max_speed or self.optimize_memory else None

    @property
    def cache_dtype(self) -> str | None:
        return self.cache.value if self.cache is not None else "int8" if self.optimize_memory else None

    @property
    def chunk_tokens(self) -> int:
        return 256 if self.optimize_memory else 2048

    def engine_options(self) -> dict[str, Any]:
        """Keywords of `Engine`."""
        kernels = self.on_gpu if self.flash_attention is None else self.flash_attention
        return {
            "runner": "auto" if kernels else "cached", "max_batch": self.batch_size, "max_seq_len": self.context,
            "cache_dtype": self.cache_dtype, "chunk_tokens": self.chunk_tokens, "lookahead": 32 if self.max_speed else 8,
        }  # fmt: skip
