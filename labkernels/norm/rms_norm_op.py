"""The operation `rms_norm`: x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.norm import inputs, mistakes, peers, reference
from labkernels.norm.inputs import shape
from labkernels.operation import Op, Variant


def problem(x, weight=None, eps=1e-5) -> str | None:
    return reference.problem(x, eps, {"weight": weight}, {})


def make_inputs(
    generator, device, dtype, *, rows, cols, magnitude=1.0, offset=0.0, layout="contiguous", weight="same", eps=1e-5
) -> dict:
    """x (rows, cols) and weight (cols,), around 1: of x's dtype, `float32`, or `none`."""
    x = inputs.matrix(generator, device, dtype, rows, cols, magnitude, offset, layout)
    given = {} if weight == "none" else {"weight": inputs.vector(generator, device, torch.float32 if weight == "float32" else dtype, cols, 1.0)}
    return {"x": x, **given, "eps": eps}


def hints(failure) -> str | None:
    x, weight = failure.inputs["x"].double(), failure.inputs.get("weight")
    return failure.matching(mistakes.of_rms_norm(x, None if weight is None else weight.double(), failure.inputs["eps"]))


def bytes_moved(dtype, *, rows, cols, **_) -> int:
    """x read, y written, the weight read once."""
    return (2 * rows + 1) * cols * dtype.itemsize


def load_variants() -> Mapping[str, Variant]:
    from labkernels.norm.variants import RMS_NORM

    return RMS_NORM


OP = Op(
    name="rms_norm",
    summary="x / sqrt(mean(x^2) + eps) * weight over the last axis",
    load_variants=load_variants,
    reference=reference.rms_norm,
    native=peers.rms_norm,
    problem=problem,
    make_inputs=make_inputs,
    axes=("row", "col"),
    dtypes=(torch.float32, torch.bfloat16),
    small_shapes=(shape(1, 1), shape(3, 33), shape(2, 1024)),
    check_shapes=(
        shape(1, 1),
        shape(3, 1, eps=0.1),
        shape(1, 3),
        shape(3, 33),
        shape(5, 32),
        shape(6, 33, layout="transposed"),
        shape(4, 40, layout="rows_apart"),
        shape(3, 64, magnitude=1e4),
        shape(3, 64, magnitude=1e-4, eps=1e-6),
        shape(2, 257, offset=5.0),
        shape(5, 64, weight="none"),
        shape(7, 1024),
    ),
    large_shapes=(
        shape(1000, 128, layout="rows_apart"),
        shape(300, 1000),
        shape(1000, 4096),
        shape(777, 4097),
        shape(555, 8192, weight="float32"),
        shape(301, 16_384),
        shape(5, 100_000),
        shape(3, 100_001),
        shape(100_003, 33),
    ),
    tolerance=inputs.tolerance,
    hints=hints,
    complete_shape=inputs.complete_shape,
    sweep={"dtype": ["bfloat16"], "cols": [2048, 4096, 8192]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "rows": [16_384], "cols": [1024, 2048, 4096, 8192, 16_384]},
        {"dtype": ["bfloat16"], "rows": [16, 256, 2048], "cols": [4096]},
        {"dtype": ["float32"], "rows": [16_384], "cols": [4096]},
    ),
    flops=lambda *, rows, cols, **_: 4 * rows * cols,
    bytes_moved=bytes_moved,
    peers=peers.RMS_NORM,
)
