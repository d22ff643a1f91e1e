"""The operation `layer_norm_backward`: the gradients of x, weight and bias.

With rstd = 1 / sqrt(variance + eps), n = (x - mean) * rstd and g = grad_out * weight

    dx = rstd * (g - mean(g) - n * mean(g * n))    dweight = sum over rows of grad_out * n    dbias = sum over rows of grad_out

mean and rstd are worked out again from x.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.norm import inputs, layer_norm_op, mistakes, peers, reference
from labkernels.norm.inputs import shape
from labkernels.operation import Op, Variant


def problem(grad_out, x, weight=None, eps=1e-5) -> str | None:
    return reference.problem(x, eps, {"weight": weight}, {"grad_out": grad_out})


def make_inputs(generator, device, dtype, *, rows, cols, magnitude=1.0, offset=0.0, layout="contiguous", weight="same", eps=1e-5) -> dict:
    """Inputs of the forward pass but its bias, and a normally distributed grad_out laid out as x."""
    given = {"rows": rows, "cols": cols, "magnitude": magnitude, "offset": offset, "layout": layout, "weight": weight, "eps": eps}
    forward = layer_norm_op.make_inputs(generator, device, dtype, bias=False, **given)
    return {"grad_out": inputs.matrix(generator, device, dtype, rows, cols, layout=layout), **forward}


def hints(failure) -> str | None:
    grad_out, x, weight = (None if (given := failure.inputs.get(name)) is None else given.double() for name in ("grad_out", "x", "weight"))
    found = mistakes.of_gradients(grad_out, x, weight, failure.inputs["eps"], None, centred=True)
    return failure.matching((what, wrong[failure.result]) for what, wrong in found if failure.result in wrong)


def bytes_moved(dtype, *, rows, cols, **_) -> int:
    """x and grad_out read, dx written; weight read, dweight and dbias written once."""
    return (3 * rows + 3) * cols * dtype.itemsize


def load_variants() -> Mapping[str, Variant]:
    from labkernels.norm.backward_variants import LAYER_NORM_BACKWARD

    return LAYER_NORM_BACKWARD


OP = Op(
    name="layer_norm_backward",
    summary="the gradients of LayerNorm: dx, dweight and dbias from that of its result",
    load_variants=load_variants,
    reference=reference.layer_norm_backward,
    native=peers.layer_norm_backward,
    problem=problem,
    make_inputs=make_inputs,
    axes=("row", "col"),
    results=("dx", "dweight", "dbias"),
    dtypes=(torch.float32, torch.bfloat16),
    element_times=4.0,
    small_shapes=(shape(1, 3), shape(3, 33), shape(5, 1024)),
    check_shapes=(
        shape(1, 3),
        shape(3, 33),
        shape(6, 33, layout="transposed"),
        shape(4, 40, layout="rows_apart"),
        shape(20, 64, offset=100.0, magnitude=10.0),
        shape(5, 64, weight="none"),
        shape(9, 1024),
    ),
    large_shapes=(shape(10_000, 128), shape(1000, 4096), shape(777, 4097), shape(301, 16_384), shape(5, 100_000), shape(100_003, 33)),
    tolerance=inputs.gradient_tolerance,
    hints=hints,
    complete_shape=inputs.complete_shape,
    sweep={"dtype": ["bfloat16"], "cols": [2048, 4096, 8192]},
    record_sweeps=({"dtype": ["bfloat16"], "rows": [16_384], "cols": [1024, 2048, 4096, 8192]},),
    flops=lambda *, rows, cols, **_: 16 * rows * cols,
    bytes_moved=bytes_moved,
    peers=peers.LAYER_NORM_BACKWARD,
)
