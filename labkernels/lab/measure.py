"""One measurement is one row: an implementation of an operation, at one shape and dtype, on this machine's GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from labkernels.errors import ArgumentError
from labkernels.lab.ceilings import Ceilings
from labkernels.lab.environment import environment
from labkernels.lab.timing import input_sets_needed, time_calls
from labkernels.operation import Op, Peer, Shape, Variant, dtype_name

RESULT_COLUMNS = ["ms", "ms_p20", "ms_p80", "tflops", "gb_per_s", "limit_ms", "share_of_limit", "peak_mb", "note"]
ENVIRONMENT_COLUMNS = ["gpu", "driver", "cuda", "torch", "commit", "date"]


@dataclass(frozen=True)
class Entry:
    """Who is measured. `kind` is "ours", "peer" or "yours" (a function of the reader's)."""

    name: str
    kind: str
    fn: Callable
    accepts: Callable[..., str | None]
    distance: float = 0.0  # of a peer, as its `Peer.distance`

    @classmethod
    def of(cls, op: Op, what: str | Variant | Peer | Callable) -> Entry:
        """From the name of a variant or peer, from one itself, or from a function. KeyError or TypeError if it is none of them."""
        found = op.implementation(what) if isinstance(what, str) else what
        if isinstance(found, (Variant, Peer)):
            ours = isinstance(found, Variant)
            return cls(found.name, "ours" if ours else "peer", found.fn, found.accepts, 0.0 if ours else found.distance)
        if not callable(found):
            raise TypeError(f"bench: {what!r} is neither a function nor the name of a variant or peer of {op.name}")
        return cls(getattr(found, "__name__", type(found).__name__), "yours", found, lambda **inputs: None)


def empty_row(op: Op, entry: Entry, dtype: torch.dtype, shape: Shape, note: str) -> dict:
    """A row without a measurement; `note` says why."""
    return {
        "op": op.name,
        "variant": entry.name,
        "kind": entry.kind,
        **shape,
        "dtype": dtype_name(dtype),
        **dict.fromkeys(RESULT_COLUMNS[:-1], math.nan),
        "note": note,
    }


def measure(op: Op, entry: Entry, dtype: torch.dtype, shape: Shape, ceilings: Ceilings, budget_ms: float = 150.0) -> dict:
    """Time `entry` and check its result; a row of the schema in data/README.md.

    What cannot be measured gives a row whose `note` says why: inputs it does not accept, too little memory, a wrong result.
    Inputs are rotated past L2 where bytes are the limit, and where they are so few that L2 would hold them all.
    """
    row = empty_row(op, entry, dtype, shape, "") | environment()
    row["limit_ms"] = ceilings.limit_ms(op, dtype, shape)
    generator = torch.Generator("cuda").manual_seed(0)
    sets = input_sets_needed(op.bytes_moved(dtype, **shape) / 2) if ceilings.memory_bound(op, dtype, shape) else 1
    try:
        inputs = [op.make_inputs(generator, "cuda", dtype, **shape) for _ in range(sets)]
        refusal = entry.accepts(**inputs[0])
        if refusal is not None:
            return row | {"note": refusal}
        timing = time_calls(lambda kwargs: entry.fn(**kwargs), inputs, budget_ms)
        peak_bytes, got = peak_memory(lambda: entry.fn(**inputs[0]))
        if not _agrees(op, dtype, shape, inputs[0], got, entry.distance):
            return row | {"note": "wrong result"}
    except torch.OutOfMemoryError:
        return row | {"note": "out of memory"}
    except RuntimeError as error:  # a backend that refuses its inputs
        if entry.kind != "peer":
            raise
        return row | {"note": str(error).splitlines()[0]}
    finally:
        inputs = got = None
        torch.cuda.empty_cache()
    return row | {
        "ms": timing.ms,
        "ms_p20": timing.ms_p20,
        "ms_p80": timing.ms_p80,
        "tflops": op.flops(**shape) / timing.ms / 1e9,
        "gb_per_s": op.bytes_moved(dtype, **shape) / timing.ms / 1e6,
        "share_of_limit": row["limit_ms"] / timing.ms,
        "peak_mb": peak_bytes / 1e6,
    }


def peak_memory(call: Callable) -> tuple[int, object]:
    """The most bytes that PyTorch has allocated at once within `call()` beyond those it had before, its result's included; and the result."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, result


def _agrees(op: Op, dtype: torch.dtype, shape: Shape, inputs: dict, got, distance: float = 0.0) -> bool:
    """Is the result, as a whole, as close to PyTorch's as two honest implementations are? `check` is the strict judge."""
    try:
        pairs = list(zip(*(op.each(op.decode(result, **inputs)) for result in (got, op.native(**inputs)))))
    except ArgumentError:
        return False
    return all(_close(op, dtype, shape, *pair, distance) for pair in pairs)


def _close(op: Op, dtype: torch.dtype, shape: Shape, got, want: torch.Tensor, distance: float = 0.0) -> bool:
    if not isinstance(got, torch.Tensor) or got.numel() != want.numel() or got.dtype != want.dtype:
        return False
    got, want = got.detach().reshape(want.shape).float(), want.float()
    tolerance = op.tolerance(dtype, **shape)
    allowed = 2 * (tolerance.absolute + tolerance.relative * want.abs()).norm() + distance * want.norm()
    if dtype != torch.float32:
        allowed = allowed + 4 * torch.finfo(dtype).eps * want.norm()
    return bool((got - want).norm() <= allowed)
