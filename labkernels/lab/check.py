"""One judge for every implementation: `check("softmax", my_softmax)`.

Small inputs go through the emulator's sanitizer first. Then come many shapes, seeds and dtypes on this machine's device, each compared
with a float64 reference: shape, dtype, every element written, finite and within a tolerance scaled by dtype and reduction length, the
inputs untouched, the same bits when run again. In bfloat16 the result may be at most twice as far from float64 as PyTorch's own.

On a GPU all that happens in a second process, so that a kernel that hangs or crashes all the same leaves this one as it was.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from labkernels.lab.candidate import Candidate
from labkernels.lab.judge import Case, Judge
from labkernels.lab.progress import progress
from labkernels.operation import Op, Peer, Variant, as_dtype, ops

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


def check(
    op: str | Op,
    fn: str | Variant | Peer | Callable,
    *,
    seeds: Sequence[int] = (0, 1),
    dtypes: Sequence[torch.dtype | str] | None = None,
    isolated: bool | None = None,
    time_limit_s: float = 20.0,
    quiet: bool = False,
    **only,
) -> CheckReport:
    """Judge `fn` as an implementation of `op`; prints one line and returns a CheckReport, or raises CheckFailed.

    `fn` takes the operation's inputs (see `labkernels.softmax.softmax` and its like) and returns a new tensor; it may also be the name of a
    variant or peer. `dtypes` and `only` narrow the cases: `check("attention", fn, dtypes=["float32"], head_dim=64, causal=False)`.
    Runs on the GPU where there is one, else on the CPU, where each launch has a process of its own.

    With `isolated`, `fn` runs in a second process, which is ended when a case takes longer than `time_limit_s`; so it is on a GPU, but for
    peers, unless told otherwise. What `fn` refers to is copied there: what it changes in this process's variables, it changes in the copy.
    ArgumentError if that cannot be done.
    """
    from labkernels.lab.judge_apart import judge_apart

    op = ops[op] if isinstance(op, str) else op
    candidate = Candidate.of(op, fn)
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
    small_cases = _cases(op, small_shapes, "cpu", dtypes, seeds[:1], only)
    if isolated is None:
        isolated = device == "cuda" and not candidate.is_peer
    passed, left_out = 0, {}
    judge = Judge(op, candidate, device)
    with judge_apart(judge, time_limit_s) if isolated else nullcontext(judge) as judge:
        sanitizer = next(filter(None, map(judge.sanitize, small_cases)), "clean")
        for case in progress(cases, f"check {op.name}"):
            late = device == "cpu" and time.perf_counter() - start > CPU_TIME_S
            refusal = f"stopped after {CPU_TIME_S:.0f} s" if late else judge.judge(case, repeat=case.seed == seeds[0])
            if refusal is None:
                passed += 1
            else:
                left_out[refusal] = left_out.get(refusal, 0) + 1
    if passed == 0:
        raise ValueError(f"check: {candidate.name} accepts no case of {op.name}: {'; '.join(left_out)}")
    report = CheckReport(op.name, device, passed, left_out, sanitizer, time.perf_counter() - start)
    if not quiet:
        print(report)
    return report


def _cases(op: Op, shapes, device: str, dtypes, seeds, only: dict) -> list[Case]:
    defaults = {name: parameter.default for name, parameter in inspect.signature(op.make_inputs).parameters.items()}
    unknown = [name for name in only if name not in defaults]
    if unknown:
        raise TypeError(f"check: {op.name} has no size or option {unknown[0]!r}; it has {', '.join(list(defaults)[3:])}")
    wanted = {name: value if isinstance(value, (list, tuple, range, set)) else (value,) for name, value in only.items()}
    chosen = [shape for shape in shapes if all(shape.get(name, defaults[name]) in values for name, values in wanted.items())]
    chosen_dtypes = op.dtypes if dtypes is None else tuple(as_dtype(dtype) for dtype in dtypes)
    return [Case(shape, dtype, seed, device) for seed in seeds for dtype in chosen_dtypes for shape in chosen]
