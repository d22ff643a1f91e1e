"""The operation `scaled_matmul`: (scale_a * a) @ (b * scale_b) + bias of 8-bit floats. What it is, on what it is judged, and what it costs.

a is (m, k), b (k, n), both float8_e4m3fn and dense along k; scale_a has one number a row, or one in all, scale_b one a column, or one in
all. An operation's dtype is here that of the result and of bias.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.operation import Op, Tolerance, Variant, dtype_name
from labkernels.scaled_matmul.peers import PEERS, native
from labkernels.scaled_matmul.reference import reference

FLOAT8 = torch.float8_e4m3fn
OUT_DTYPES = (torch.bfloat16, torch.float16)
LINEARS = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))  # (n, k) of Llama 3 8B: q with k and v, output, gate with up, down


def problem(a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> str | None:
    """What is wrong with these inputs, or None. Shapes first, so that a wrong one is named before anything is launched."""
    tensors = {name: t for name, t in (("b", b), ("scale_a", scale_a), ("scale_b", scale_b), ("bias", bias)) if t is not None}
    for name, tensor, axes in (("a", a, "(m, k)"), ("b", b, "(k, n)")):
        if tensor.dim() != 2:
            return f"{name} has shape {tuple(tensor.shape)}; it must have two axes, {axes}"
        if tensor.dtype != FLOAT8:
            return f"{name} is {dtype_name(tensor.dtype)}; it must be float8_e4m3fn"
    if out_dtype not in OUT_DTYPES:
        return f"out_dtype is {out_dtype}; it must be torch.bfloat16 or torch.float16"
    for name, tensor in tensors.items():
        if tensor.device != a.device:
            return f"{name} is on {tensor.device}, a is on {a.device}; both must be on one device"
    if b.shape[0] != a.shape[1]:
        return f"b has {b.shape[0]} rows, a has {a.shape[1]} columns; both must be equal"
    (m, k), n = a.shape, b.shape[1]
    for name, scale, each, of in (("scale_a", scale_a, ((m, 1), (m,)), "row of a"), ("scale_b", scale_b, ((1, n), (n,)), "column of b")):
        if tuple(scale.shape) not in (*each, ()):
            return f"{name} has shape {tuple(scale.shape)}; it must have one number a {of}, {each[0]} or {each[1]}, or one in all, ()"
        if scale.dtype != torch.float32:
            return f"{name} is {dtype_name(scale.dtype)}; it must be float32"
    if bias is not None and bias.shape != (n,):
        return f"bias has shape {tuple(bias.shape)}; it must be ({n},), one number a column of b"
    if bias is not None and bias.dtype != out_dtype:
        return f"bias is {dtype_name(bias.dtype)}; it must be of out_dtype, {dtype_name(out_dtype)}"
    if bias is not None and n > 1 and bias.stride(0) != 1:
        return f"bias has stride {bias.stride(0)}; its elements must be dense in memory (stride 1)"
    if k > 1 and a.stride(1) != 1:
        return f"a has strides {a.stride()}; the rows of a must be dense in memory (stride 1)"
    if k > 1 and b.stride(0) != 1:
        return f"b has strides {b.stride()}; the columns of b must be dense in memory (stride 1), as those of weight.t() are"
    return None


def shape(m: int, n: int | None = None, k: int | None = None, scales: str = "rows", bias: bool = False, **other) -> dict:
    """A complete shape from what differs from square, scales of rows and columns, and no bias."""
    return {"m": m, "n": m if n is None else n, "k": m if k is None else k, "scales": scales, "bias": bias, **other}


def make_inputs(generator, device, dtype, *, m, n, k, scales="rows", bias=False, gap=0) -> dict:
    """Normally distributed matrices, scaled so that the largest number of what shares a scale is float8's largest, 448.

    Scales: `rows`, one for each row of a and each column of b; `tensor`, one for each matrix; `mixed`, rows of a, the whole of b. Rows of
    a and columns of b begin `gap` elements after the end of the one before.
    """

    def quantised(rows, each):
        x = torch.randn((max(rows, 1), gap + max(k, 1)), generator=generator, device=generator.device)
        sizes = x.abs().amax(1, keepdim=True) if each else x.abs().amax()
        numbers, scales = (448 / sizes * x).to(device, FLOAT8), (sizes / 448).to(device)
        return numbers[:rows, gap : gap + k], scales[:rows] if each else scales

    a, scale_a = quantised(m, scales != "tensor")
    b, scale_b = quantised(n, scales == "rows")
    added = torch.randn((n,), generator=generator, device=generator.device).to(device, dtype) if bias else None
    return {"a": a, "b": b.t(), "scale_a": scale_a, "scale_b": scale_b.t(), "bias": added, "out_dtype": dtype}


def tolerance(dtype: torch.dtype, *, k, **_) -> Tolerance:
    """That of float32 sums, as for `matmul`. Tensor cores keep fewer digits of fp8 sums, as PyTorch's own do: check allows twice theirs."""
    epsilon = torch.finfo(torch.float32).eps
    return Tolerance(relative=epsilon * (8 + k**0.5), absolute=epsilon * (8 + 8 * k**0.5 + k))


def complete_shape(dtype, *, m, n=None, k=None, scales="rows", bias=False) -> dict:
    """Square unless told otherwise."""
    return shape(m, n, k, scales, bias)


def bytes_moved(dtype, *, m, n, k, bias=False, **_) -> int:
    """a and b at a byte an element, scales and bias read once, the result written once."""
    return m * k + k * n + 4 * (m + n) + (m * n + n * bias) * dtype.itemsize


def load_variants() -> Mapping[str, Variant]:
    from labkernels.scaled_matmul.variants import VARIANTS

    return VARIANTS


OP = Op(
    name="scaled_matmul",
    summary="(scale_a * a) @ (b * scale_b) + bias of 8-bit floats",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    make_inputs=make_inputs,
    axes=("row", "col"),
    dtypes=(torch.bfloat16,),
    small_shapes=(shape(1), shape(3, 5, 9), shape(33, 40, 48, bias=True), shape(20, 24, 272, "tensor")),
    check_shapes=(
        shape(1),
        shape(3),
        shape(33),
        shape(32),
        shape(64, 128, 128),
        shape(130, 264, 144),
        shape(1, 40, 96),
        shape(50, 1, 70),
        shape(70, 65, 1),
        shape(5, 8, 1040),
        shape(40, 56, 1000, bias=True),
        shape(129, 136, 400, "tensor"),
        shape(48, 72, 160, "mixed", True),
        shape(48, 72, 160, gap=16),
        shape(37, 51, 64, gap=3),
        shape(20, 32, 0, bias=True),
    ),
    large_shapes=(
        shape(1024),
        shape(1000, 776, 1552, "tensor"),
        shape(512, 4096, 8192, bias=True),
        shape(8, 4096, 4096),
    ),
    tolerance=tolerance,
    complete_shape=complete_shape,
    sweep={"dtype": ["bfloat16"], "m": [1024, 2048, 4096, 8192]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "m": [1024, 2048, 4096, 8192]},
        *({"dtype": ["bfloat16"], "n": [n], "k": [k], "m": [512, 2048, 8192]} for n, k in LINEARS),
    ),
    flops=lambda *, m, n, k, **_: 2 * m * n * k,
    bytes_moved=bytes_moved,
    compute_ceiling="float8_e4m3fn",
    peers=PEERS,
)
