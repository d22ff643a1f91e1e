"""Is this result right? The comparison with float64 that `check` makes for every case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from labkernels.errors import ArgumentError, LabKernelsError
from labkernels.lab.error_map import error_map
from labkernels.lab.failure import CheckFailed, Failure
from labkernels.lab.poison import unwritten
from labkernels.operation import Op, dtype_name

TIMES_PYTORCH = 2.0  # how many times as far from float64 as PyTorch's own a result of low precision may be
TRACED_ELEMENTS = 1 << 16  # of a wrong result, at most, for one more run that tells who wrote the first wrong one


def differing_bits(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A mask of where two tensors of one shape and dtype differ in any bit. NaNs with equal bits are equal, 0 and -0 are not."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return one.view(integer) != other.view(integer)


def _writer(again: Callable[[], torch.Tensor], got: torch.Tensor, index: tuple[int, ...]) -> str:
    """The thread that writes this element, in one more run that the emulator watches; nothing where that cannot be told."""
    from labkernels.cuda.emulator import tracing

    if got.device.type != "cpu" or got.numel() > TRACED_ELEMENTS:
        return ""
    try:
        with tracing(time_limit_s=10.0) as trace:
            result = again()
    except (LabKernelsError, CheckFailed):
        return ""
    return trace.writer(result.reshape(got.shape), index)


def compare(op: Op, case, inputs: dict[str, Any], got, again: Callable[[], Any], repeat: bool, owner: Callable | None) -> None:
    """Raise CheckFailed unless `got` is the operation's result for `inputs`, and, if `repeat`, `again()` gives it once more.

    Of an operation with several results, one after the other is judged."""
    decoded = lambda result: op.each(op.decode(result, **inputs))
    wants = op.each(op.reference(**doubled(inputs)))  # float64
    try:
        gots = decoded(got)
    except ArgumentError as error:
        raise CheckFailed("wrong_shape", got=str(error), case=str(case)) from None
    natives = decoded(op.native(**inputs)) if case.dtype != torch.float32 else wants
    for which, name in enumerate(op.results):
        result = _expect_tensor(gots[which], wants[which], case, name)
        _compare_one(op, case, inputs, name, result, wants[which], natives[which], lambda which=which: decoded(again())[which], repeat, owner)


def _compare_one(op: Op, case, inputs, name: str, got, want, native, again, repeat: bool, owner: Callable | None) -> None:
    missing = unwritten(got)
    infinite = ~got.isfinite()
    error = (got.double() - want).abs()
    allowed, own_error = _allowed(op, case, native, want)
    wrong = ~(error <= allowed)  # a comparison with nan is false

    def fail(reason: str, guilty: torch.Tensor, detail: str):
        index = tuple(int(i) for i in guilty.nonzero()[0]) if got.dim() else ()
        failure = Failure(op, reason, case.shape, case.dtype, inputs, got, want, allowed, guilty, index, name)
        raise CheckFailed(
            reason,
            where=_place(op, name, index),
            got="nothing" if reason == "not_written" else float(got[index]),
            want=float(want[index]),
            case=str(case),
            detail=detail,
            owner=owner(index, **inputs) if owner else "" if reason == "not_written" else _writer(again, got, index),
            error_map=error_map(guilty, missing, infinite, index, _axes(op, index)),
            hint=op.hints(failure) or failure.last_tile(),
        )

    if missing.any():
        fail("not_written", missing, f"{_count(missing)} were never written, or += was used on memory that nobody had written")
    if infinite.any():
        fail("not_finite", infinite, f"{_count(infinite)} are nan or infinite")
    if wrong.any():
        _expect_repeatable(op, case, name, got, again, "the result is wrong, and another one each time: look for a race, or a variable read before it has a value")
        count = f"{_count(wrong)} are wrong; " if wrong.numel() > 1 else ""
        worst = f"the largest error is {error.max():.3g} where {allowed.flatten()[error.argmax()]:.3g} is allowed"
        fail("mismatch", wrong, count + worst)
    if case.dtype != torch.float32:
        distance, limit = error.norm(), TIMES_PYTORCH * own_error
        if distance > limit:
            times = TIMES_PYTORCH * float(distance / limit)
            detail = f"as a whole {times:.1f} times as far from float64 as PyTorch's own {dtype_name(case.dtype)}; {TIMES_PYTORCH:.0f} is allowed"
            fail("mismatch", error >= error.max(), detail)
    if repeat:
        _expect_repeatable(op, case, name, got, again, "two runs on the same input differ: look for a race, or memory read before it is written")


def _place(op: Op, name: str, index: tuple[int, ...]) -> str:
    """Which element of which result."""
    return ", ".join([name] * bool(name) + [f"{axis} {i}" for axis, i in zip(_axes(op, index), index)])


def _axes(op: Op, index: tuple[int, ...]) -> tuple[str, ...]:
    """Names for the axes of a result, which may have fewer than others of the operation."""
    return op.axes[len(op.axes) - len(index) :]


def _expect_tensor(got, want: torch.Tensor, case, name: str) -> torch.Tensor:
    """`got` as a tensor of the expected shape, dtype and device; one element where a scalar is wanted may come with an axis."""
    if not isinstance(got, torch.Tensor):
        what = "None: is a `return` missing?" if got is None else f"a {type(got).__name__}"
        raise CheckFailed("wrong_shape", where=name, got=what, want=f"a tensor of shape {tuple(want.shape)}", case=str(case))
    if got.shape != want.shape and not (want.dim() == 0 and got.shape == (1,)):
        raise CheckFailed("wrong_shape", where=name, got=f"shape {tuple(got.shape)}", want=str(tuple(want.shape)), case=str(case))
    if got.dtype != case.dtype:
        raise CheckFailed("wrong_dtype", where=name, got=dtype_name(got.dtype), want=dtype_name(case.dtype), case=str(case))
    if got.device.type != case.device:
        raise CheckFailed("wrong_dtype", where=f"{name or 'the result'}'s device", got=str(got.device), want=case.device, case=str(case))
    return got.detach().reshape(want.shape)


def _allowed(op: Op, case, native: torch.Tensor, want: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest error each element may have, and in low precision how far PyTorch's own result is as a whole (a norm)."""
    tolerance = op.tolerance(case.dtype, **case.shape)
    allowed = tolerance.absolute + tolerance.relative * want.abs()
    if case.dtype == torch.float32:
        return allowed, torch.zeros(())
    epsilon = torch.finfo(case.dtype).eps  # rounding the right result errs by epsilon / 2, some epsilon / 4 in the mean
    own = (native.double() - want).abs()
    beyond_rounding = (own - epsilon * want.abs()).clamp(min=0).max()
    whole = torch.maximum(own.norm(), epsilon / 4 * want.norm() + tolerance.absolute * want.numel() ** 0.5)
    return allowed + epsilon * want.abs() + op.element_times * beyond_rounding, whole


def _expect_repeatable(op: Op, case, name: str, first: torch.Tensor, again: Callable[[], torch.Tensor], detail: str) -> None:
    if not op.deterministic and not case.shape.get("deterministic"):
        return
    second = again().detach().reshape(first.shape)
    moved = differing_bits(first, second)
    if not moved.any():
        return
    index = tuple(int(i) for i in moved.nonzero()[0]) if first.dim() else ()
    raise CheckFailed(
        "nondeterministic",
        where=_place(op, name, index),
        got=f"{float(first[index]):.9g} the first time, {float(second[index]):.9g} the second",
        case=str(case),
        detail=detail,
    )


def doubled(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with floating-point tensors in float64."""
    floats = {name for name, value in inputs.items() if isinstance(value, torch.Tensor) and value.is_floating_point()}
    return {name: value.double() if name in floats else value for name, value in inputs.items()}


def _count(mask: torch.Tensor) -> str:
    return f"{int(mask.sum())} of {mask.numel()} elements"
