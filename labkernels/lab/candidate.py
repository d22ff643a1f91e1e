"""What is judged: a function, a variant or a peer, and how it is called with an operation's inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch

from labkernels.lab.poison import poisoned_memory
from labkernels.operation import Op, Peer, Variant


@dataclass(frozen=True)
class Candidate:
    """What is judged, whether it came as a function, a variant, a peer or a name."""

    name: str
    fn: Callable
    accepts: Callable[..., str | None]
    owner: Callable | None
    is_peer: bool = False

    @classmethod
    def of(cls, op: Op, fn) -> Candidate:
        fn = op.implementation(fn) if isinstance(fn, str) else fn
        if isinstance(fn, (Variant, Peer)):
            return cls(fn.name, fn.fn, fn.accepts, getattr(fn, "owner", None), isinstance(fn, Peer))
        if not callable(fn):
            raise TypeError(f"check: {fn!r} is neither a function nor the name of a variant of {op.name}")
        return cls(getattr(fn, "__name__", type(fn).__name__), fn, _accepts_anything, getattr(fn, "owner", None))

    def __call__(self, op: Op, inputs: dict):
        """Call with what must be given by position, the rest by keyword; an option at its default is not passed to who does not take it."""
        defaults = inspect.signature(op.reference).parameters
        tensors = [value for name, value in inputs.items() if defaults[name].default is inspect.Parameter.empty]
        options = {name: value for name, value in inputs.items() if defaults[name].default is not inspect.Parameter.empty}
        taken = self._keywords(defaults)
        options = {name: value for name, value in options.items() if name in taken or not _same(value, defaults[name].default)}
        with poisoned_memory():
            result = self.fn(*tensors, **options)
        if tensors[0].device.type == "cuda":
            torch.cuda.synchronize()
        return result

    def lacking(self, op: Op) -> set[str]:
        """Which of the operation's optional options it does not take."""
        return set(op.optional - self._keywords(inspect.signature(op.reference).parameters))

    def _keywords(self, all_keywords) -> set[str]:
        """What it takes by keyword; all, where it takes any or cannot be asked."""
        try:
            taken = inspect.signature(self.fn).parameters
        except (TypeError, ValueError):
            return set(all_keywords)
        return set(all_keywords if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()) else taken)


def _same(value, default) -> bool:
    return value is default or not isinstance(value, torch.Tensor) and value == default


def _accepts_anything(**inputs) -> None:
    return None
