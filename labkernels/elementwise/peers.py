"""What the peers of small operations share: torch.compile, one compilation a function, shape and dtype; packages that may not be installed."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch

from labkernels.operation import Peer


def needs_gpu(**inputs) -> str | None:
    tensor = next(value for value in inputs.values() if isinstance(value, torch.Tensor))
    return None if tensor.is_cuda else "needs a GPU"


def compiled(native: Callable, accepts: Callable = needs_gpu) -> Peer:
    """`native` through torch.compile: each combination of shapes, dtypes and options compiled once, with static shapes."""

    @functools.lru_cache(maxsize=64)
    def compile_for(*_):
        torch.compiler.reset()
        return torch.compile(native, dynamic=False)

    def fn(**inputs):
        return compile_for(_case(tuple(inputs.values())))(**inputs)

    return Peer("torch.compile", fn, accepts)


def _case(value):
    """What a compilation with static shapes is made for. Past eight of one function PyTorch runs it uncompiled, and says so in a warning only."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, tuple):
        return tuple(map(_case, value))
    return value if isinstance(value, (bool, int, float, str)) else type(value)


def optional(name: str, package: str, fn: Callable, accepts: Callable = needs_gpu) -> Peer:
    """A peer from a package that need not be installed, and that refuses its inputs where it is not."""

    def refusal(**inputs) -> str | None:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
        return accepts(**inputs)

    return Peer(name, fn, refusal)
