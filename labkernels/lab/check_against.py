"""The same judge for what is no operation of this package: `check_against(lambda x, y: x + y, my_add, cases)`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from labkernels.errors import ArgumentError
from labkernels.lab.check import CheckReport, check
from labkernels.lab.failure import Failure
from labkernels.operation import Op, Tolerance

SMALL_ELEMENTS = 4096  # cases whose largest tensor has no more than this many elements go through the sanitizer first


def check_against(
    reference: Callable[..., torch.Tensor],
    fn: Callable[..., torch.Tensor],
    cases: Sequence[Mapping[str, Any]],
    *,
    mistakes: Mapping[str, Callable[..., torch.Tensor]] | None = None,
    isolated: bool | None = None,
    time_limit_s: float = 20.0,
    quiet: bool = False,
) -> CheckReport:
    """Judge `fn` as `check` does, for float32 and one seed: it must compute what `reference`, plain PyTorch, computes in float64.

    Each of `cases` names the arguments of `reference`: a tuple stands for a random tensor of that shape, anything else for itself, as in
    `{"x": (1000,), "y": (1000,), "a": 2.5}`. `fn` takes the tensors by position, the rest by keyword, and returns a new tensor.
    `mistakes` maps a description, as it follows "Your result is", to a function that computes what the mistake gives from the same arguments.

    The tolerance is that of a few operations on numbers near 1; for long sums and exponentials there are the operations of `lk.ops`.
    `isolated` and `time_limit_s` are as for `check`.
    Prints one line; raises CheckFailed, or ArgumentError if a case does not fit `reference`.
    """
    op = operation_of(reference, fn, cases, mistakes)
    return check(op, fn, seeds=(0,), isolated=isolated, time_limit_s=time_limit_s, quiet=quiet)


def operation_of(
    reference: Callable[..., torch.Tensor], fn: Callable, cases: Sequence[Mapping[str, Any]], mistakes: Mapping[str, Callable] | None = None
) -> Op:
    """`reference` as an operation that is judged on `cases`; ArgumentError if one does not fit it."""
    shapes = tuple(dict(case) for case in cases)
    for shape in shapes:
        _expect_to_fit(reference, shape)
    small = tuple(shape for shape in shapes if _largest(shape) <= SMALL_ELEMENTS)
    for description, mistake in (mistakes or {}).items():
        try:
            inspect.signature(mistake).bind(**dict.fromkeys(inspect.signature(reference).parameters))
        except TypeError as error:
            raise ArgumentError(f"check_against: what computes the mistake {description!r} must take what the reference takes: {error}") from None
    dimensions = reference(**_random(torch.Generator().manual_seed(0), "cpu", torch.float64, **shapes[0])).dim() if shapes else 0
    return Op(
        name=getattr(fn, "__name__", type(fn).__name__),
        summary="",
        load_variants=dict,
        reference=reference,
        native=reference,
        problem=lambda **inputs: None,
        make_inputs=_random,
        axes=_axes(dimensions),
        dtypes=(torch.float32,),
        small_shapes=small,
        check_shapes=shapes,
        tolerance=_tolerance,
        hints=lambda failure: _hint(failure, mistakes or {}),
    )


def _random(generator: torch.Generator, device, dtype: torch.dtype, **case) -> dict[str, Any]:
    return {
        name: torch.randn(value, generator=generator).to(device, dtype) if isinstance(value, tuple) else value for name, value in case.items()
    }


def _tolerance(dtype: torch.dtype, **case) -> Tolerance:
    epsilon = torch.finfo(dtype).eps
    return Tolerance(relative=4 * epsilon, absolute=32 * epsilon)


def _axes(dimensions: int) -> tuple[str, ...]:
    """What messages call the result's axes: an index, a row and a column, and what is before these by number."""
    last = ("row", "col") if dimensions > 1 else ("index",)[:dimensions]
    return (*(f"axis {axis}:" for axis in range(dimensions - len(last))), *last)


def _hint(failure: Failure, mistakes: Mapping[str, Callable]) -> str | None:
    """The mistake that was foreseen, or one that anybody makes."""
    doubled = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in failure.inputs.items()}
    foreseen = ((description, mistake(**doubled)) for description, mistake in mistakes.items())
    return failure.matching(foreseen) or failure.matching(_common(failure.want, doubled))


def _common(want: torch.Tensor, inputs: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    yield "zero everywhere: is anything written over what torch.zeros gave?", torch.zeros_like(want)
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.shape == want.shape:
            yield f"{name} itself", value
    yield "the right one with the other sign", -want
    yield "exactly twice the right one: is each element added by two threads?", 2 * want
    if want.dim() == 2 and want.shape[0] == want.shape[1]:
        yield "the right one transposed: rows and columns have changed places", want.t()
    if want.dim() > 0:
        yield "the right one backwards", want.flip(-1)


def _largest(case: Mapping[str, Any]) -> int:
    return max((math.prod(value) for value in case.values() if isinstance(value, tuple)), default=0)


def _expect_to_fit(reference: Callable, case: Mapping[str, Any]) -> None:
    taken = list(inspect.signature(reference).parameters)
    if set(taken) != set(case):
        raise ArgumentError(f"check_against: the reference takes {', '.join(taken)}, but a case names {', '.join(case)}")
    if not any(isinstance(value, tuple) for value in case.values()):
        raise ArgumentError("check_against: a case without a tensor; a tuple such as (1000,) stands for a tensor of that shape")
