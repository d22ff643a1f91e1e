"""`torch.ops.labkernels.sample_tokens`: each setting is a number, or a tensor (rows,) that stands in its place.

    (logits, temperature, top_k, top_p, min_p, repetition_penalty, seed, position, previous, temperatures, ..., positions) -> (tokens, logprobs)
"""

from __future__ import annotations

import torch

from labkernels.errors import ArgumentError
from labkernels.sampling.sample_tokens_op import SETTINGS, problem, run
from labkernels.torch_extension.operators import define

_NUMBERS = "float temperature=1.0, int top_k=0, float top_p=1.0, float min_p=0.0, float repetition_penalty=1.0, int seed=0, int position=0"
_TENSORS = ", ".join(f"Tensor? {name}s=None" for name in SETTINGS)


def _settings(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=0, position=0, previous=None, *tensors, **named) -> dict:
    numbers = dict(zip(SETTINGS, (temperature, top_k, top_p, min_p, repetition_penalty, seed, position)))
    given = dict(zip(SETTINGS, tensors)) | {name.removesuffix("s"): value for name, value in named.items()}
    return numbers | {name: value for name, value in given.items() if value is not None} | {"previous": previous}


def sample_tokens(logits, *settings, **named) -> tuple[torch.Tensor, torch.Tensor]:
    return run(logits, return_logprobs=True, **_settings(*settings, **named))


def sample_tokens_fake(logits, *settings, **named) -> tuple[torch.Tensor, torch.Tensor]:
    wrong = problem(logits, **_settings(*settings, **named))
    if wrong is not None:
        raise ArgumentError(f"sample_tokens: {wrong}")
    return logits.new_empty(logits.shape[:1], dtype=torch.int64), logits.new_empty(logits.shape[:1], dtype=torch.float32)


def call(logits, temperature, top_k, top_p, min_p, repetition_penalty, previous, seed, position) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator, from settings that may be numbers or tensors."""
    given = (temperature, top_k, top_p, min_p, repetition_penalty, seed, position)
    numbers = [0 if isinstance(value, torch.Tensor) else value for value in given]
    tensors = [value if isinstance(value, torch.Tensor) else None for value in given]
    return torch.ops.labkernels.sample_tokens(logits, *numbers, previous, *tensors)


define(
    "sample_tokens", f"(Tensor logits, {_NUMBERS}, Tensor? previous=None, {_TENSORS}) -> (Tensor tokens, Tensor logprobs)",
    sample_tokens, sample_tokens_fake,
)  # fmt: skip
