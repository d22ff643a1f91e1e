"""The operation `w8a8_matmul`: x @ (weight * scale).T + bias in bytes. What it is, on what it is judged, and what it costs.

x (m, k) is quantised row by row on the way, weight (n, k) has been before, scale has one number a row of the weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.operation import Op, Tolerance, Variant, dtype_name
from labkernels.w8a8_matmul.peers import PEERS, native
from labkernels.w8a8_matmul.reference import quantise, reference

DTYPES = (torch.bfloat16, torch.float16)
MOST_K = 2**31 // 127**2  # products of bytes that an int32 can surely hold
LINEARS = ((11008, 4096), (4096, 11008), (28672, 8192))  # (n, k) of Llama 2 7B's FFN, and of Llama 3 70B's


def problem(x, weight, scale, bias=None) -> str | None:
    """What is wrong with these inputs, or None."""
    if x.dim() != 2:
        return f"x has shape {tuple(x.shape)}; it must have two axes, (m, k)"
    if x.dtype not in DTYPES:
        return f"x is {dtype_name(x.dtype)}; it must be bfloat16 or float16"
    if weight.dim() != 2:
        return f"weight has shape {tuple(weight.shape)}; it must have two axes, (n, k)"
    if weight.dtype != torch.int8:
        return f"weight is {dtype_name(weight.dtype)}; it must be int8"
    (n, k), given = weight.shape, (("weight", weight), ("scale", scale), ("bias", bias))
    for name, tensor in given:
        if tensor is not None and tensor.device != x.device:
            return f"{name} is on {tensor.device}, x is on {x.device}; both must be on one device"
    if x.shape[1] != k:
        return f"x has {x.shape[1]} columns, weight has {k}; both must be equal"
    if k > MOST_K:
        return f"weight has {k} columns; the sum of more than {MOST_K} products of bytes may exceed an int32"
    if tuple(scale.shape) not in ((n,), (n, 1)):
        return f"scale has shape {tuple(scale.shape)}; it must have one number a row of weight, ({n},) or ({n}, 1)"
    if scale.dtype != torch.float32:
        return f"scale is {dtype_name(scale.dtype)}; it must be float32"
    if bias is not None and bias.shape != (n,):
        return f"bias has shape {tuple(bias.shape)}; it must be ({n},), one number a row of weight"
    if bias is not None and bias.dtype != x.dtype:
        return f"bias is {dtype_name(bias.dtype)}, x is {dtype_name(x.dtype)}; both must be equal"
    if bias is not None and n > 1 and bias.stride(0) != 1:
        return f"bias has stride {bias.stride(0)}; its elements must be dense in memory (stride 1)"
    for name, tensor in (("x", x), ("weight", weight)):
        if k > 1 and tensor.stride(1) != 1:
            return f"{name} has strides {tensor.stride()}; the rows of {name} must be dense in memory (stride 1)"
    return None


def shape(m: int, n: int | None = None, k: int | None = None, bias: bool = False, **other) -> dict:
    """A complete shape from what differs from square and no bias."""
    return {"m": m, "n": m if n is None else n, "k": m if k is None else k, "bias": bias, **other}


def make_inputs(generator, device, dtype, *, m, n, k, bias=False, gap=0, size=1.0) -> dict:
    """Normally distributed matrices of which each 64th column of x is ten times as large, as those of language models are.

    Rows of x and of the weight begin `gap` elements after the end of the one before.
    """

    def normal(rows):
        return torch.randn((rows, gap + k), generator=generator, device=generator.device)

    x = normal(m) * size
    x[:, gap::64] *= 10
    rows = normal(n) / max(k, 1) ** 0.5
    scale = rows[:, gap:].abs().amax(1) / 127 if k else rows.new_ones(n)
    weight = (rows / scale[:, None]).nan_to_num(0.0).round().clamp(-127, 127).to(device, torch.int8)[:, gap:]
    added = torch.randn((n,), generator=generator, device=generator.device).to(device, dtype) if bias else None
    return {"x": x.to(device, dtype)[:, gap:], "weight": weight, "scale": scale.to(device), "bias": added}


def tolerance(dtype: torch.dtype, *, k, size=1.0, **_) -> Tolerance:
    """The sums are exact: a few roundings to float32 remain, and the one to the result's dtype, which check adds."""
    epsilon = torch.finfo(torch.float32).eps
    return Tolerance(relative=8 * epsilon, absolute=8 * epsilon * max(1.0, size))


def hints(failure) -> str | None:
    """A sentence about the likely mistake behind a wrong result, or None."""
    x, weight, scale, bias = (failure.inputs[name] for name in ("x", "weight", "scale", "bias"))
    if failure.reason != "mismatch" or failure.want.numel() * x.shape[1] > 1 << 24:
        return None
    q, scale_q = (tensor.double() for tensor in quantise(x))
    sums, rows, columns = q @ weight.double().t(), scale_q[:, None], scale.double().reshape(1, -1)
    added = 0 if bias is None else bias.double()
    mistakes = [
        ("that of sums in 8 bits: each was cut off at 127", sums.clamp(-128, 127) * rows * columns + added),
        ("without the scales of the weight's rows", sums * rows + added),
        ("without the scales of the rows of x", sums * columns + added),
        ("without any scale: the sums of the bytes", sums + added),
    ]
    return failure.matching(mistakes + ([("without the bias", sums * rows * columns)] if bias is not None else []))


def complete_shape(dtype, *, m, n=None, k=None, bias=False) -> dict:
    """Square unless told otherwise."""
    return shape(m, n, k, bias)


def bytes_moved(dtype, *, m, n, k, bias=False, **_) -> int:
    """x in 16 bits, the weight in 8, scale and bias read once, the result written once."""
    return (m * k + m * n + n * bias) * dtype.itemsize + n * k + 4 * n


def load_variants() -> Mapping[str, Variant]:
    from labkernels.w8a8_matmul.variants import VARIANTS

    return VARIANTS


OP = Op(
    name="w8a8_matmul",
    summary="x @ (weight * scale).T + bias in bytes, x quantised row by row",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    make_inputs=make_inputs,
    axes=("row", "col"),
    dtypes=(torch.bfloat16,),
    small_shapes=(shape(3, 5, 9), shape(33, 40, 48, bias=True), shape(20, 24, 272)),
    check_shapes=(
        shape(1),
        shape(3),
        shape(33),
        shape(32),
        shape(64, 136, 144),
        shape(130, 264, 128),
        shape(5, 8, 1040),
        shape(40, 56, 1000, bias=True),
        shape(48, 72, 160, gap=16),
        shape(37, 51, 64, gap=3),
        shape(24, 40, 96, size=1e20),
        shape(20, 32, 0, bias=True),
    ),
    large_shapes=(shape(1024), shape(1000, 776, 1552), shape(512, 4096, 8192, True), shape(8, 4096, 4096), shape(300, 520, 20000)),
    tolerance=tolerance,
    hints=hints,
    complete_shape=complete_shape,
    sweep={"dtype": ["bfloat16"], "m": [1024, 4096]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "m": [1024, 4096]},
        *({"dtype": ["bfloat16"], "n": [n], "k": [k], "m": [256, 4096]} for n, k in LINEARS),
    ),
    flops=lambda *, m, n, k, **_: 2 * m * n * k,
    bytes_moved=bytes_moved,
    compute_ceiling="int8",
    peers=PEERS,
)
