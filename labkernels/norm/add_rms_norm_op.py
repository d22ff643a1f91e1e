"""The operation `add_rms_norm`: the residual stream takes up what a layer made, and its RMSNorm goes to the next one. Two results."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.norm import inputs, mistakes, peers, reference
from labkernels.norm.inputs import shape
from labkernels.operation import Op, Tolerance, Variant


def problem(x, residual, weight=None, bias=None, eps=1e-5) -> str | None:
    wrong = reference.problem(x, eps, {"weight": weight}, {"residual": residual})
    if wrong or bias is None:
        return wrong
    return reference.problem(x, eps, {"bias": bias}, {}) or (None if bias.dtype == x.dtype else "bias is float32; it must be of x's dtype")


def make_inputs(
    generator, device, dtype, *, rows, cols, magnitude=1.0, layout="contiguous", weight="same", bias=False, eps=1e-5
) -> dict:
    """x and residual (rows, cols), weight (cols,) around 1: of x's dtype, `float32`, or `none`; and a bias if wanted."""
    x, residual = (inputs.matrix(generator, device, dtype, rows, cols, magnitude, 0.0, layout) for _ in range(2))
    of = torch.float32 if weight == "float32" else dtype
    given = {} if weight == "none" else {"weight": inputs.vector(generator, device, of, cols, 1.0)}
    given |= {"bias": magnitude * inputs.vector(generator, device, dtype, cols)} if bias else {}
    return {"x": x, "residual": residual, **given, "eps": eps}


def tolerance(dtype: torch.dtype, *, cols, magnitude=1.0, **other) -> Tolerance:
    """Of a norm; the sum is of the size of x, and rounded before it is normalised."""
    found = inputs.tolerance(dtype, cols=cols)
    return Tolerance(found.relative, found.absolute * max(1.0, magnitude))


def hints(failure) -> str | None:
    x, residual, weight, bias = (
        None if (given := failure.inputs.get(name)) is None else given.double() for name in ("x", "residual", "weight", "bias")
    )
    eps = failure.inputs["eps"]
    if failure.result == "sum":
        norm = "the norm: the second result is what was normalised", reference.add_rms_norm(x, residual, weight, bias, eps)[0]
        others = [("x itself", x), ("the residual itself", residual), ("the sum without the bias", x + residual)]
        return failure.matching([*others, norm])
    total = x + residual + (0 if bias is None else bias)
    alone = [("the norm of x alone", reference.rms_norm(x, weight, eps)), ("the sum itself", total)]
    return failure.matching(alone) or failure.matching(mistakes.of_rms_norm(total, weight, eps))


def bytes_moved(dtype, *, rows, cols, bias=False, **_) -> int:
    """x and residual read, both results written, weight and bias read once."""
    return (4 * rows + 1 + bias) * cols * dtype.itemsize


def load_variants() -> Mapping[str, Variant]:
    from labkernels.norm.variants import ADD_RMS_NORM

    return ADD_RMS_NORM


OP = Op(
    name="add_rms_norm",
    summary="the RMSNorm of x + residual (+ bias), and the sum itself",
    load_variants=load_variants,
    reference=reference.add_rms_norm,
    native=peers.add_rms_norm,
    problem=problem,
    make_inputs=make_inputs,
    axes=("row", "col"),
    results=("y", "sum"),
    dtypes=(torch.float32, torch.bfloat16),
    small_shapes=(shape(1, 1), shape(3, 33, bias=True), shape(2, 1024)),
    check_shapes=(
        shape(1, 3),
        shape(3, 33, bias=True),
        shape(6, 33, layout="transposed"),
        shape(4, 40, layout="rows_apart", bias=True),
        shape(3, 64, magnitude=100.0),
        shape(5, 64, weight="none"),
        shape(7, 1024, bias=True),
    ),
    large_shapes=(
        shape(1000, 4096, bias=True),
        shape(777, 4097),
        shape(555, 8192, weight="float32"),
        shape(301, 16_384),
        shape(5, 100_000, bias=True),
    ),
    tolerance=tolerance,
    hints=hints,
    complete_shape=inputs.complete_shape,
    sweep={"dtype": ["bfloat16"], "cols": [2048, 4096, 8192]},
    record_sweeps=({"dtype": ["bfloat16"], "rows": [16_384], "cols": [2048, 4096, 8192]}, {"dtype": ["bfloat16"], "rows": [16, 256], "cols": [4096]}),
    flops=lambda *, rows, cols, **_: 5 * rows * cols,
    bytes_moved=bytes_moved,
    peers=peers.ADD_RMS_NORM,
)
