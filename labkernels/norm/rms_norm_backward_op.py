"""The operation `rms_norm_backward`: the gradients of x and of weight.

With rstd = 1 / sqrt(mean(x^2) + eps), n = x * rstd and g = grad_out * weight

    dx = rstd * (g - n * mean(g * n)) + grad_sum        dweight = sum over rows of grad_out * n

grad_sum, if given, is what else arrives at x: after `add_rms_norm`, the gradient of the sum. rstd is worked out again from x.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.norm import inputs, mistakes, peers, reference, rms_norm_op
from labkernels.norm.inputs import shape
from labkernels.operation import Op, Variant


def problem(grad_out, x, weight=None, eps=1e-5, grad_sum=None) -> str | None:
    return reference.problem(x, eps, {"weight": weight}, {"grad_out": grad_out, "grad_sum": grad_sum})


def make_inputs(generator, device, dtype, *, rows, cols, grad_sum=False, magnitude=1.0, layout="contiguous", weight="same", eps=1e-5) -> dict:
    """Inputs of the forward pass, and a normally distributed grad_out laid out as x; grad_sum if wanted."""
    given = {"rows": rows, "cols": cols, "magnitude": magnitude, "layout": layout, "weight": weight, "eps": eps}
    forward = rms_norm_op.make_inputs(generator, device, dtype, **given)
    grad_out = inputs.matrix(generator, device, dtype, rows, cols, layout=layout)
    return {"grad_out": grad_out, **forward} | ({"grad_sum": inputs.matrix(generator, device, dtype, rows, cols)} if grad_sum else {})


def hints(failure) -> str | None:
    given = (failure.inputs.get(name) for name in ("grad_out", "x", "weight", "grad_sum"))
    grad_out, x, weight, grad_sum = (None if tensor is None else tensor.double() for tensor in given)
    found = mistakes.of_gradients(grad_out, x, weight, failure.inputs["eps"], grad_sum, centred=False)
    return failure.matching((what, wrong[failure.result]) for what, wrong in found if failure.result in wrong)


def bytes_moved(dtype, *, rows, cols, grad_sum=False, **_) -> int:
    """x and grad_out read, dx written; weight read and dweight written once."""
    return ((3 + grad_sum) * rows + 2) * cols * dtype.itemsize


def load_variants() -> Mapping[str, Variant]:
    from labkernels.norm.backward_variants import RMS_NORM_BACKWARD

    return RMS_NORM_BACKWARD


OP = Op(
    name="rms_norm_backward",
    summary="the gradients of RMSNorm: dx and dweight from that of its result",
    load_variants=load_variants,
    reference=reference.rms_norm_backward,
    native=peers.rms_norm_backward,
    problem=problem,
    make_inputs=make_inputs,
    axes=("row", "col"),
    results=("dx", "dweight"),
    dtypes=(torch.float32, torch.bfloat16),
    element_times=4.0,
    small_shapes=(shape(1, 1), shape(3, 33), shape(5, 1024)),
    check_shapes=(
        shape(1, 3),
        shape(3, 1, eps=0.1),
        shape(3, 33),
        shape(6, 33, layout="transposed"),
        shape(4, 40, layout="rows_apart", grad_sum=True),
        shape(20, 64, magnitude=100.0),
        shape(5, 64, weight="none"),
        shape(9, 1024),
        shape(5, 1024, grad_sum=True),
    ),
    large_shapes=(
        shape(10_000, 128),
        shape(1000, 4096),
        shape(777, 4097),
        shape(555, 8192, weight="none", grad_sum=True),
        shape(301, 16_384),
        shape(5, 100_000),
        shape(100_003, 33),
    ),
    tolerance=inputs.gradient_tolerance,
    hints=hints,
    complete_shape=inputs.complete_shape,
    sweep={"dtype": ["bfloat16"], "cols": [2048, 4096, 8192]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "rows": [16_384], "cols": [1024, 2048, 4096, 8192]},
        {"dtype": ["float32"], "rows": [16_384], "cols": [4096]},
    ),
    flops=lambda *, rows, cols, **_: 12 * rows * cols,
    bytes_moved=bytes_moved,
    peers=peers.RMS_NORM_BACKWARD,
)
