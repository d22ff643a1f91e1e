"""The operation `sum`: the sum of a vector. What it is, on what it is judged, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.operation import Op, Peer, Tolerance, Variant


def reference(x: torch.Tensor) -> torch.Tensor:
    """The sum of all elements of x (n,), of shape ()."""
    return x.sum()


def problem(x: torch.Tensor) -> str | None:
    if x.dim() != 1:
        return f"x has shape {tuple(x.shape)}; it must have one axis, (n,)"
    if x.dtype != torch.float32:
        return f"x is {str(x.dtype).removeprefix('torch.')}; it must be float32"
    return None


def make_inputs(generator, device, dtype, *, n: int, magnitude: float = 1.0, layout: str = "contiguous") -> dict:
    """x (n,) of normally distributed numbers. Layouts: contiguous; offset (starts 4 bytes after an aligned address); every_second."""
    room = {"contiguous": n, "offset": n + 1, "every_second": 2 * n}[layout]
    x = (magnitude * torch.randn(room, generator=generator, device=generator.device)).to(device, dtype)
    first, step = {"contiguous": (0, 1), "offset": (1, 1), "every_second": (0, 2)}[layout]
    return {"x": x[first::step]}


def tolerance(dtype: torch.dtype, *, n: int, magnitude: float = 1.0, layout: str = "contiguous") -> Tolerance:
    """The error of adding one by one in float32, the least accurate of the honest ways: it grows with n."""
    epsilon = torch.finfo(torch.float32).eps
    return Tolerance(relative=4 * epsilon, absolute=epsilon * magnitude * (8 + n / 2))


def hints(failure) -> str | None:
    """Does the result equal the sum of only a part of x?"""
    x, got = failure.inputs["x"].double(), failure.got
    if got.numel() != 1 or not torch.isfinite(got).all():
        return None
    sums, got, near = x.cumsum(0), got.double().reshape(()), 2 * failure.allowed.max()
    if (got - 2 * sums[-1]).abs() < near:
        return "Your result is exactly twice the sum: is each element added by two threads?"
    sizes = [size for size in range(1, x.numel()) if size in (1, x.numel() - 1) or size % 32 == 0]
    for size in sizes:
        if (got - sums[size - 1]).abs() < near:
            return f"Your result is the sum of the first {size} of {x.numel()} elements: who adds the rest?"
        if (got - (sums[-1] - sums[size - 1])).abs() < near:
            return f"Your result is the sum without the first {size} of {x.numel()} elements."
    return None


def load_variants() -> Mapping[str, Variant]:
    from labkernels.sum.variants import VARIANTS

    return VARIANTS


OP = Op(
    name="sum",
    summary="the sum of a vector",
    load_variants=load_variants,
    reference=reference,
    native=reference,
    problem=problem,
    make_inputs=make_inputs,
    axes=(),
    dtypes=(torch.float32,),
    small_shapes=tuple({"n": n} for n in (1, 33, 300)),
    check_shapes=(
        *({"n": n} for n in (1, 2, 3, 31, 32, 33, 100, 255, 256, 257, 1000, 1025, 2048, 5000)),
        {"n": 777, "layout": "offset"},
        {"n": 300, "layout": "every_second"},
        {"n": 1000, "magnitude": 1e6},
    ),
    large_shapes=({"n": 1_000_003}, {"n": 1 << 22}),
    tolerance=tolerance,
    deterministic=False,  # atomic additions may happen in any order
    hints=hints,
    sweep={"n": [2**power for power in (16, 18, 20, 22, 24, 26)]},
    record_sweeps=({"n": [2**power for power in (16, 18, 20, 22, 24, 26, 28)]},),
    flops=lambda *, n, **_: n,
    bytes_moved=lambda dtype, *, n, **_: n * dtype.itemsize + 4,
    memory_ceiling="read",
    peers={"torch": Peer("torch", reference)},
)
