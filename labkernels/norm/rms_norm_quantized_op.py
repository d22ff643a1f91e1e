"""The operation `rms_norm_quantized`: a norm that is written as 8-bit numbers with one scale a row, as an 8-bit matmul reads it.

Two results, three with a residual: values (rows, cols), float8_e4m3fn or int8; scale (rows, 1), float32; the sum that was normalised. The norm
is values * scale, and that is what is judged: the largest of a row is the dtype's largest number, so int8 errs by at most 1/254 of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from labkernels.errors import ArgumentError
from labkernels.norm import add_rms_norm_op, inputs, peers, reference, rms_norm_op
from labkernels.norm.inputs import shape
from labkernels.operation import Op, Tolerance, Variant, dtype_name

DTYPE_NAMES = {dtype_name(dtype): dtype for dtype in reference.NARROW}


def problem(x, weight=None, eps=1e-5, dtype=torch.float8_e4m3fn, residual=None, bias=None) -> str | None:
    if dtype not in reference.NARROW:
        return f"dtype is {dtype!r}; it must be torch.float8_e4m3fn or torch.int8"
    if residual is None:
        return "bias is given without a residual; it is added to a sum" if bias is not None else rms_norm_op.problem(x, weight, eps)
    return add_rms_norm_op.problem(x, residual, weight, bias, eps)


def make_inputs(
    generator, device, dtype, *, rows, cols, out="float8_e4m3fn", residual=False, magnitude=1.0, layout="contiguous", weight="same", eps=1e-5
) -> dict:
    given = {"rows": rows, "cols": cols, "magnitude": magnitude, "layout": layout, "weight": weight, "eps": eps}
    made = (add_rms_norm_op if residual else rms_norm_op).make_inputs(generator, device, dtype, **given)
    return made | {"dtype": DTYPE_NAMES[out]}


def exact(x, weight=None, eps=1e-5, dtype=torch.float8_e4m3fn, residual=None, bias=None) -> torch.Tensor:
    """The norm before it is quantised: what values * scale should be."""
    return reference.rms_norm(x, weight, eps) if residual is None else reference.add_rms_norm(x, residual, weight, bias, eps)[0]


def decode(result, x, **_) -> torch.Tensor:
    """values * scale, in x's dtype."""
    if not isinstance(result, (tuple, list)) or len(result) not in (2, 3) or not all(isinstance(one, torch.Tensor) for one in result):
        raise ArgumentError("rms_norm_quantized: the result must be the tuple (values, scale), or (values, scale, sum) with a residual")
    values, scale = result[:2]
    if values.dtype not in reference.NARROW or scale.shape != (x.shape[0], 1) or scale.dtype != torch.float32:
        raise ArgumentError(
            f"rms_norm_quantized: values are {dtype_name(values.dtype)}, scale is {dtype_name(scale.dtype)} {tuple(scale.shape)}; "
            f"they must be float8_e4m3fn or int8, and float32 {(x.shape[0], 1)}"
        )
    return (values.float() * scale).to(x.dtype)


def tolerance(dtype: torch.dtype, *, rows, cols, out="float8_e4m3fn", **other) -> Tolerance:
    """Half a step: 1/16 of a number of e4m3's three bits, 1/254 of a row's largest number in int8.

    That is at most some r (1 + r), r^2 = ln(rows cols): the largest product of a normal x and a weight around 1, where both lie r out.
    """
    r = math.log(max(64, rows * cols)) ** 0.5
    return Tolerance(0.0635, 1e-3) if out == "float8_e4m3fn" else Tolerance(1e-4, 1.2 * r * (1 + r) / 254)


def bytes_moved(dtype, *, rows, cols, residual=False, **_) -> int:
    """x read, a byte written for each of its elements, and the scales; a residual read and a sum written."""
    return rows * cols * ((3 if residual else 1) * dtype.itemsize + 1) + cols * dtype.itemsize + 4 * rows


def load_variants() -> Mapping[str, Variant]:
    from labkernels.norm.variants import RMS_NORM_QUANTIZED

    return RMS_NORM_QUANTIZED


OP = Op(
    name="rms_norm_quantized",
    summary="RMSNorm as 8-bit numbers (float8_e4m3fn or int8) with one scale a row",
    load_variants=load_variants,
    reference=exact,
    native=peers.rms_norm_quantized,
    problem=problem,
    make_inputs=make_inputs,
    axes=("row", "col"),
    dtypes=(torch.float32, torch.bfloat16),
    decode=decode,
    small_shapes=(shape(1, 1), shape(3, 33), shape(2, 1024, residual=True)),
    check_shapes=(
        shape(1, 1),
        shape(3, 33),
        shape(4, 40, layout="rows_apart"),
        shape(3, 64, magnitude=1e4, weight="none"),
        shape(7, 1024, residual=True),
        shape(3, 1024, out="int8"),
    ),
    large_shapes=(shape(1000, 4096), shape(1000, 4096, out="int8"), shape(777, 4097), shape(555, 8192, residual=True), shape(5, 100_000)),
    tolerance=tolerance,
    complete_shape=inputs.complete_shape,
    sweep={"dtype": ["bfloat16"], "out": ["float8_e4m3fn"], "cols": [2048, 4096, 8192]},
    record_sweeps=({"dtype": ["bfloat16"], "rows": [16_384], "out": ["float8_e4m3fn", "int8"], "cols": [2048, 4096, 8192]},),
    flops=lambda *, rows, cols, **_: 6 * rows * cols,
    bytes_moved=bytes_moved,
    peers=peers.RMS_NORM_QUANTIZED,
)
