"""One judge for every implementation: `check("softmax", my_softmax)`.

Small inputs go through the emulator's sanitizer first. Then come many shapes, seeds and dtypes on this machine's device, each compared
with a float64 reference: shape, dtype, every element written, finite and within a tolerance scaled by dtype and reduction length, the
inputs untouched, the same bits when run again. In bfloat16 the result may be at most twice as far from float64 as PyTorch's own.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from labkernels.errors import LaunchError, SanitizerError
from labkernels.lab.compare import compare, differing_bits
from labkernels.lab.failure import CheckFailed
from labkernels.lab.guilty_line import guilty_line
from labkernels.lab.poison import poisoned_memory
from labkernels.lab.progress import progress
from labkernels.operation import Op, Peer, Shape, Variant, as_dtype, dtype_name, ops

CPU_TIME_S = 120.0  # after this long in the emulator (or Numba's simulator), the cases that are left are left out, and the report says so


@dataclass
class CheckReport:
    """What a check that passed has tried. `left_out` maps a reason to how many cases it kept from being tried."""

    op: str
    device: str
    passed: int
    left_out: dict[str, int]
    sanitizer: str  # "clean", or why it did not run
    elapsed_s: float

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.passed} cases passed"]
        most_first = sorted(self.left_out.items(), key=lambda item: -item[1])
        lines += [f"  not tried: {count} cases, {reason}" for reason, count in most_first[:2]]
        if len(most_first) > 2:
            others = most_first[2:]
            lines.append(f"  not tried: {sum(count for _, count in others)} cases, for {len(others)} other reasons (see .left_out)")
        if self.sanitizer != "clean":
            lines.append(f"  sanitizer: {self.sanitizer}")
        return "\n".join(lines)

    __repr__ = __str__


@dataclass(frozen=True)
class Case:
    """One set of inputs: `case.inputs(op)` makes the same ones each time, on any device."""

    shape: Shape
    dtype: torch.dtype
    seed: int
    device: str

    def inputs(self, op: Op) -> dict:
        return op.make_inputs(torch.Generator().manual_seed(self.seed), self.device, self.dtype, **self.shape)

    def __str__(self) -> str:
        sizes = ", ".join(f"{name}={value}" for name, value in self.shape.items())
        return f"{sizes}; {dtype_name(self.dtype)}, seed {self.seed}, {self.device}"


def check(
    op: str | Op,
    fn: str | Variant | Peer | Callable,
    *,
    seeds: Sequence[int] = (0, 1),
    dtypes: Sequence[torch.dtype | str] | None = None,
    quiet: bool = False,
    **only,
) -> CheckReport:
    """Judge `fn` as an implementation of `op`; prints one line and returns a CheckReport, or raises CheckFailed.

    `fn` takes the operation's inputs (see `labkernels.softmax.softmax` and its like) and returns a new tensor; it may also be the name of a
    variant or peer. `dtypes` and `only` narrow the cases: `check("attention", fn, dtypes=["float32"], head_dim=64, causal=False)`.
    Runs on the GPU where there is one, else on the CPU, where each launch has a process of its own.
    """
    from labkernels.cuda import isolated

    op = ops[op] if isinstance(op, str) else op
    candidate = _Candidate.of(op, fn)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    lacking = candidate.lacking(op)
    small_shapes, shapes = (
        [shape for shape in chosen if not shape.keys() & lacking]
        for chosen in (op.small_shapes, op.check_shapes + (op.large_shapes if device == "cuda" else ()))
    )
    cases = _cases(op, shapes, device, dtypes, seeds, only)
    if not cases:
        raise ValueError(f"check: no case of {op.name} is left with dtypes={dtypes}, {only}")
    passed, left_out = 0, {}
    with _one_thread():
        sanitizer = _sanitize(op, candidate, _cases(op, small_shapes, "cpu", dtypes, seeds[:1], only), device)
        for case in progress(cases, f"check {op.name}"):
            inputs = case.inputs(op)
            refusal = candidate.accepts(**inputs)
            if refusal is None and device == "cpu" and time.perf_counter() - start > CPU_TIME_S:
                refusal = f"stopped after {CPU_TIME_S:.0f} s"
            if refusal is not None:
                left_out[refusal] = left_out.get(refusal, 0) + 1
                continue
            with isolated() if device == "cpu" else nullcontext():
                _judge(op, candidate, case, inputs, repeat=case.seed == seeds[0])
            passed += 1
    if passed == 0:
        raise ValueError(f"check: {candidate.name} accepts no case of {op.name}: {'; '.join(left_out)}")
    report = CheckReport(op.name, device, passed, left_out, sanitizer, time.perf_counter() - start)
    if not quiet:
        print(report)
    return report


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch on one thread: on these small tensors its threads wait for each other more than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Candidate:
    """What is judged, whether it came as a function, a variant, a peer or a name."""

    name: str
    fn: Callable
    accepts: Callable
    owner: Callable | None

    @classmethod
    def of(cls, op: Op, fn) -> _Candidate:
        fn = op.implementation(fn) if isinstance(fn, str) else fn
        if isinstance(fn, (Variant, Peer)):
            return cls(fn.name, fn.fn, fn.accepts, getattr(fn, "owner", None))
        if not callable(fn):
            raise TypeError(f"check: {fn!r} is neither a function nor the name of a variant of {op.name}")
        return cls(getattr(fn, "__name__", type(fn).__name__), fn, lambda **inputs: None, getattr(fn, "owner", None))

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


def _cases(op: Op, shapes, device: str, dtypes, seeds, only: dict) -> list[Case]:
    defaults = {name: parameter.default for name, parameter in inspect.signature(op.make_inputs).parameters.items()}
    unknown = [name for name in only if name not in defaults]
    if unknown:
        raise TypeError(f"check: {op.name} has no size or option {unknown[0]!r}; it has {', '.join(list(defaults)[3:])}")
    wanted = {name: value if isinstance(value, (list, tuple, range, set)) else (value,) for name, value in only.items()}
    chosen = [shape for shape in shapes if all(shape.get(name, defaults[name]) in values for name, values in wanted.items())]
    chosen_dtypes = op.dtypes if dtypes is None else tuple(as_dtype(dtype) for dtype in dtypes)
    return [Case(shape, dtype, seed, device) for seed in seeds for dtype in chosen_dtypes for shape in chosen]


def _sanitize(op: Op, candidate: _Candidate, cases: list[Case], device: str) -> str:
    """Run the small cases under the emulator's sanitizer, on CPU tensors; "clean", or why it could not run."""
    from labkernels.cuda import sanitizing

    for case in cases:
        inputs = case.inputs(op)
        if candidate.accepts(**inputs) is not None:
            continue
        try:
            with sanitizing():
                candidate(op, inputs)
        except SanitizerError as error:
            raise CheckFailed("sanitizer", case=str(case), detail=str(error.report)) from error
        except LaunchError as error:  # it would crash on the GPU too, and take the process with it
            raise _exception(case, error) from error
        except Exception as error:
            if device == "cpu":
                return "clean"  # the cases that follow run into the same error, and report it
            return f"not run, {candidate.name} needs a GPU ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    return "clean"


def _exception(case: Case, error: Exception) -> CheckFailed:
    return CheckFailed("exception", where=guilty_line(error) or "", got=f"{type(error).__name__}: {error}", case=str(case))


def _judge(op: Op, candidate: _Candidate, case: Case, inputs: dict, repeat: bool) -> None:
    """Run one case and raise CheckFailed unless everything about its result is right."""
    def run():
        try:
            return candidate(op, inputs)
        except Exception as error:
            raise _exception(case, error) from error

    before = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    got = run()
    for name, value in before.items():
        if differing_bits(inputs[name], value).any():
            raise CheckFailed("input_modified", where=name, case=str(case), detail=f"{candidate.name} must leave {name} as it was")
    compare(op, case, inputs, got, run, repeat, candidate.owner)
