"""The operation `layer_norm`: (x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba, Kiros and Hinton 2016, arXiv:1607.06450)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.norm import inputs, mistakes, peers, reference
from labkernels.norm.inputs import shape
from labkernels.operation import Op, Variant


def problem(x, weight=None, bias=None, eps=1e-5) -> str | None:
    return reference.problem(x, eps, {"weight": weight, "bias": bias}, {})


def make_inputs(
    generator, device, dtype, *, rows, cols, magnitude=1.0, offset=0.0, layout="contiguous", weight="same", bias=True, eps=1e-5
) -> dict:
    """x (rows, cols), weight (cols,) around 1 and bias (cols,): both of x's dtype, `float32`, or `none`."""
    x = inputs.matrix(generator, device, dtype, rows, cols, magnitude, offset, layout)
    of = torch.float32 if weight == "float32" else dtype
    given = {} if weight == "none" else {"weight": inputs.vector(generator, device, of, cols, 1.0)}
    return {"x": x, **given, **({"bias": inputs.vector(generator, device, of, cols)} if bias else {}), "eps": eps}


def hints(failure) -> str | None:
    given = [failure.inputs.get(name) for name in ("x", "weight", "bias")]
    return failure.matching(mistakes.of_layer_norm(*(tensor if tensor is None else tensor.double() for tensor in given), failure.inputs["eps"]))


def bytes_moved(dtype, *, rows, cols, **_) -> int:
    """x read, y written, weight and bias read once."""
    return (2 * rows + 2) * cols * dtype.itemsize


def load_variants() -> Mapping[str, Variant]:
    from labkernels.norm.variants import LAYER_NORM

    return LAYER_NORM


OP = Op(
    name="layer_norm",
    summary="(x - mean) / sqrt(variance + eps) * weight + bias over the last axis",
    load_variants=load_variants,
    reference=reference.layer_norm,
    native=peers.layer_norm,
    problem=problem,
    make_inputs=make_inputs,
    axes=("row", "col"),
    dtypes=(torch.float32, torch.bfloat16),
    small_shapes=(shape(1, 1), shape(3, 33), shape(2, 1024)),
    check_shapes=(
        shape(1, 3),
        shape(3, 33),
        shape(6, 33, layout="transposed"),
        shape(4, 40, layout="rows_apart"),
        shape(3, 64, offset=1000.0, magnitude=10.0),  # mean(x^2) - mean(x)^2 would cancel
        shape(3, 64, magnitude=1e-3, eps=1e-8),
        shape(5, 64, weight="none", bias=False),
        shape(2, 257, bias=False),
        shape(7, 1024),
    ),
    large_shapes=(
        shape(1000, 128),
        shape(1000, 4096),
        shape(777, 4097),
        shape(555, 8192, weight="float32"),
        shape(301, 16_384),
        shape(5, 100_000, offset=3.0),
        shape(100_003, 33),
    ),
    tolerance=inputs.tolerance,
    hints=hints,
    complete_shape=inputs.complete_shape,
    sweep={"dtype": ["bfloat16"], "cols": [2048, 4096, 8192]},
    record_sweeps=({"dtype": ["bfloat16"], "rows": [16_384], "cols": [1024, 2048, 4096, 8192]},),
    flops=lambda *, rows, cols, **_: 7 * rows * cols,
    bytes_moved=bytes_moved,
    peers=peers.LAYER_NORM,
)
