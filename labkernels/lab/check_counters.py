"""Grading by what a kernel asks of memory: `check_counters(lambda x: x.t(), my_transpose, {"x": (96, 160)}, bytes_at_most=1.05)`.

Counters are exact and the same on every machine, which times are not.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from labkernels.cuda.emulator.counters import ACCESSES, GLOBAL, SHARED, TOTALS, Profile
from labkernels.errors import ArgumentError
from labkernels.lab.check_against import operation_of
from labkernels.lab.compare import compare
from labkernels.lab.failure import CheckFailed
from labkernels.lab.guilty_line import guilty_line
from labkernels.lab.poison import poisoned_memory
from labkernels.lab.style import bytes_label
from labkernels.operation import Op, Shape, ops

_SECTOR_BYTES, _WORD_BYTES, _BANKS = 32, 4, 32
COUNTERS = {*TOTALS, *(f"{kind}_sectors_per_request" for kind in GLOBAL), "bank_conflicts", "barriers", "bytes_moved", "divergent_branches"}
_FEWEST = 0.95  # of the bytes that must move, below which somebody else has done the work


def check_counters(
    what: str | Callable[..., torch.Tensor],
    fn: Callable[..., torch.Tensor],
    case: Mapping[str, Any],
    *,
    bytes_at_most: float | None = None,
    quiet: bool = False,
    **at_most: float,
) -> Profile:
    """Run `fn` once in the emulator, its launches profiled, and judge the result and then the counters.

    `what` is an operation's name, `case` then its sizes, as in `check_counters("sum", my_sum, {"n": 65536}, bank_conflicts=0)`; or plain
    PyTorch, and `case` as for `check_against`. `bytes_at_most` is how often the bytes of the tensors and of the result may move through global
    memory, 1 being each once. Every other keyword is a counter of `Profile` and the most it may be, of all launches together.

    Prints one line and returns the counters. Raises CheckFailed: as `check` does for a wrong result, and "mismatch" for a counter, naming the
    line that has most of it; ArgumentError for a name that is no counter.
    """
    from labkernels.cuda import profiling

    unknown = [counter for counter in at_most if counter not in COUNTERS]
    if unknown:
        raise ArgumentError(f"check_counters: a profile has no counter {unknown[0]!r}; it has {', '.join(sorted(COUNTERS))}")
    op = ops[what] if isinstance(what, str) else operation_of(what, fn, [case])
    tried = _Tried(dict(case))
    implementation = op.implementation(fn) if isinstance(fn, str) else fn
    name = getattr(implementation, "name", None) or getattr(implementation, "__name__", type(implementation).__name__)
    inputs = {key: value for key, value in tried.inputs(op).items() if value is not None}
    with profiling() as profiles:
        try:
            got = _call(op, implementation, inputs)
        except Exception as error:
            got_instead = f"{type(error).__name__}: {error}"
            raise CheckFailed("exception", guilty_line(error) or "", got_instead, case=str(tried)) from error
    compare(op, tried, inputs, got, lambda: _call(op, implementation, inputs), repeat=False, owner=None)
    if not profiles:
        raise CheckFailed("mismatch", "launches", "no kernel of CUDA C++", "at least one", case=str(tried))
    counted = Profile.together(profiles)
    told = []
    if bytes_at_most is not None:
        tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
        told.append(_judge_bytes(counted, _bytes_of(*tensors, got), bytes_at_most, str(tried)))
    told += [_judge(counted, counter, limit, str(tried)) for counter, limit in at_most.items()]
    if not quiet:
        print(f"{name}: right, and {', '.join(told)}")
    return counted


@dataclass(frozen=True)
class _Tried:
    """The one case that is counted."""

    shape: Shape
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def inputs(self, op: Op) -> dict[str, Any]:
        return op.make_inputs(torch.Generator().manual_seed(0), self.device, self.dtype, **self.shape)

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.shape.items()) + "; float32, counted in the emulator"


def _call(op: Op, fn: Callable, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Call with what the operation must have by position, the rest by keyword where it is not the default."""
    defaults = {key: parameter.default for key, parameter in inspect.signature(op.reference).parameters.items()}
    tensors = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}
    given = [value for key, value in tensors.items() if defaults[key] is inspect.Parameter.empty]
    options = {key: value for key, value in inputs.items() if (defaults[key] is not inspect.Parameter.empty if key in tensors else value != defaults[key])}
    with poisoned_memory():
        return fn(*given, **options)


def _judge_bytes(counted: Profile, needed: int, at_most: float, case: str) -> str:
    """What to say of the bytes moved; raises CheckFailed for too many, and for too few to be true."""
    moved = counted.bytes_moved
    if moved < _FEWEST * needed:
        raise CheckFailed(
            "mismatch", "bytes of global memory", f"{bytes_label(moved)} moved", f"at least {bytes_label(needed)}, what the tensors have",
            case=case, hint="Something other than your kernel does part of the work.",
        )  # fmt: skip
    if moved > at_most * needed:
        kind, row = _worst(counted, {kind: lambda row, kind=kind: _wasted(row, kind) for kind in GLOBAL})
        scattered = _SECTOR_BYTES * _wasted(row, kind) > (moved - needed) / 2
        if not scattered:
            kind, row = _worst(counted, {kind: lambda row, kind=kind: row[f"{kind}_sectors"] for kind in GLOBAL})
        verb = kind.removeprefix("global_")
        each, asked = row[f"{kind}_sectors_per_request"], row[f"{kind}_bytes"] / row[f"{kind}_requests"]
        raise CheckFailed(
            "mismatch", f"bytes of global memory, {_place(counted, row)}", f"{bytes_label(moved)}, {moved / needed:.3g} times the tensors' own",
            f"at most {at_most:g} times", case=case,
            detail=_code(row) + f"each {verb} asks for {asked:.4g} bytes and moves {each:.3g} sectors, {_SECTOR_BYTES * each:.4g} bytes",
            hint=f"Neighbouring lanes should {verb} neighbouring elements: threadIdx.x belongs to the index that counts within a row."
            if scattered else "Each request is coalesced, so something moves more often than once.",
        )  # fmt: skip
    return f"moves {moved / needed:.3g} times the tensors' bytes (at most {at_most:g})"


def _wasted(row: dict, kind: str) -> float:
    """Sectors beyond the fewest in which the requests of a line could have been served."""
    requests = row[f"{kind}_requests"]
    return row[f"{kind}_sectors"] - max(row[f"{kind}_bytes"] / _SECTOR_BYTES, requests) if requests else 0


def _judge(counted: Profile, name: str, at_most: float, case: str) -> str:
    """What to say of one counter; raises CheckFailed if it is larger than `at_most`."""
    got = getattr(counted, name)
    words = name.replace("_", " ")
    if got > at_most:
        kinds = SHARED if name == "bank_conflicts" else [kind for kind in ACCESSES if name.startswith(kind)]
        counter = "conflicts" if name == "bank_conflicts" else name.removeprefix(kinds[0] + "_") if kinds else name
        columns = {kind: lambda row, kind=kind: row[f"{kind}_{counter}"] for kind in kinds} or {"": lambda row: row.get(counter, 0)}
        kind, row = _worst(counted, columns)
        hint = _apart(counted, kind, row) if counter == "conflicts" else None
        raise CheckFailed(
            "mismatch", f"{words}, {_place(counted, row)}", _number(got), f"at most {_number(at_most)}", case=case,
            detail=_code(row) + "here is most of it", hint=hint,
        )  # fmt: skip
    return f"{_number(got)} {words} (at most {_number(at_most)})"


def _worst(counted: Profile, columns: Mapping[str, Callable[[dict], float]]) -> tuple[str, dict]:
    """The kind of access and the line with the largest value of its column."""
    rows = counted.by_line.to_dict("records")
    return max(((kind, row) for kind in columns for row in rows), key=lambda pair: columns[pair[0]](pair[1]))


def _place(counted: Profile, row: dict) -> str:
    file = "" if row["file"] == counted.source.filename else f" of {Path(row['file']).name}"
    return f"line {row['line']}{file}"


def _code(row: dict) -> str:
    """The line's text without its comment, to be continued."""
    text = row["text"].split("//")[0].strip()
    return f"{text}\n" if text else ""


def _apart(counted: Profile, kind: str, row: dict) -> str | None:
    """How far neighbouring lanes are from each other in the request of the line that has most conflicts, if that is the same for all."""
    samples = [s for s in counted.samples if (s.file, s.line, s.kind) == (row["file"], row["line"], kind) and len(s.addresses) > 1]
    if not samples:
        return None
    addresses = max((list(s.addresses.values()) for s in samples), key=lambda addresses: (_passes(addresses), len(addresses)))
    steps = {(b - a) // _WORD_BYTES for a, b in zip(addresses, addresses[1:])}
    if len(steps) > 1:
        return f"Plot the line: .plot_line({row['line']}) of its profile shows which lanes meet in one bank."
    step = abs(steps.pop())
    same = "the same bank" if step % _BANKS == 0 else f"{_BANKS // _shared_factor(step)} of the {_BANKS} banks"
    return f"Neighbouring lanes are {step} words apart there, and so all lanes meet in {same}: bank = word % {_BANKS}."


def _passes(addresses: list[int]) -> int:
    """How many different words the fullest bank has to give for words at these addresses."""
    return max(Counter(word % _BANKS for word in {address // _WORD_BYTES for address in addresses}).values())


def _shared_factor(step: int) -> int:
    factor = 1
    while factor < _BANKS and step % (2 * factor) == 0:
        factor *= 2
    return factor


def _bytes_of(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
