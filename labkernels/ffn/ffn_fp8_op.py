"""The operation `ffn_fp8`: `ffn` with weights in 8-bit floats. What it is, on what it is judged, and what it costs.

w1 and w2 are float8_e4m3fn and lie as those of `ffn`; scale_1 and scale_2 have a float32 number for each of their rows. The definition rounds nothing
but what it is given; implementations may round tokens and h to float8 too, with a scale a token, as PyTorch's does here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from labkernels.ffn import op as forward
from labkernels.ffn.op import LLAMA_7B, shape
from labkernels.ffn.reference import ACTIVATIONS, activate, is_gated
from labkernels.operation import Op, Peer, Tolerance, Variant, dtype_name
from labkernels.scaled_matmul.peers import native as native_matmul

FLOAT8 = torch.float8_e4m3fn


def reference(x, w1, w2, scale_1, scale_2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    """act(x (scale_1 w1)^T + b1) (scale_2 w2)^T + b2 in the precision of its inputs."""
    pre = F.linear(x, w1 * scale_1[:, None], b1)
    return F.linear(activate(pre, activation), w2 * scale_2[:, None], b2)


def native(x, w1, w2, scale_1, scale_2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    """torch._scaled_mm, and PyTorch's kernels for the activation and for rounding rows."""
    return _linear(activate(_linear(x, w1, scale_1, b1), activation), w2, scale_2, b2)


def _linear(x, weight, scale, bias) -> torch.Tensor:
    sizes = x.abs().amax(1, keepdim=True).float().clamp_min(1e-30)
    values = (x.float() * (448 / sizes)).to(FLOAT8)
    return native_matmul(values, weight.t(), sizes / 448, scale, bias, x.dtype)


def problem(x, w1, w2, scale_1, scale_2, b1=None, b2=None, activation="gelu") -> str | None:
    """What is wrong with these inputs, or None."""
    if activation not in ACTIVATIONS:
        return f"activation is {activation!r}; it must be one of {', '.join(map(repr, ACTIVATIONS))}"
    if x.dim() != 2:
        return f"x has shape {tuple(x.shape)}; it must have two axes, (tokens, embed)"
    if x.dtype not in OP.dtypes:
        return f"x is {dtype_name(x.dtype)}; it must be bfloat16"
    for name, weight in (("w1", w1), ("w2", w2)):
        if weight.dim() != 2 or weight.dtype != FLOAT8:
            return f"{name} is {dtype_name(weight.dtype)} {tuple(weight.shape)}; it must be a float8_e4m3fn matrix, as fp8_rows makes it"
        if weight.stride(1) != 1 and weight.shape[1] > 1:
            return f"{name} has strides {weight.stride()}; its last axis must be dense in memory (stride 1)"
    embed, ffn = w2.shape
    rows = 2 * ffn if is_gated(activation) else ffn
    if x.shape[1] != embed:
        return f"x has shape {tuple(x.shape)}, w2 has {embed} rows; x must be (tokens, {embed})"
    if embed % 16 or ffn % 16:
        return f"w2 has shape {tuple(w2.shape)}; both must be multiples of 16"
    given = {"w1": (w1, (rows, embed)), "scale_1": (scale_1, (rows,)), "scale_2": (scale_2, (embed,)), "b1": (b1, (rows,)), "b2": (b2, (embed,))}
    for name, (tensor, size) in given.items():
        if tensor is None:
            continue
        if tensor.shape != size:
            return f"{name} has shape {tuple(tensor.shape)}; with w2 {tuple(w2.shape)} it must be {size}"
        if name.startswith("b") and tensor.stride(0) != 1 and len(tensor) > 1:
            return f"{name} has stride {tensor.stride(0)}; its elements must be dense in memory (stride 1)"
        if tensor.device != x.device:
            return f"{name} is on {tensor.device}, x is on {x.device}; both must be on one device"
        wanted = torch.float32 if name.startswith("scale") else x.dtype if name.startswith("b") else FLOAT8
        if tensor.dtype != wanted:
            return f"{name} is {dtype_name(tensor.dtype)}; it must be {dtype_name(wanted)}"
    return None


def make_inputs(generator, device, dtype, **sizes) -> dict:
    """Inputs of `ffn`, their weights rounded to float8."""
    inputs = forward.make_inputs(generator, device, dtype, **sizes)
    for number in "12":
        weight = inputs[f"w{number}"].float()
        largest = weight.abs().amax(1, keepdim=True)
        inputs[f"w{number}"], inputs[f"scale_{number}"] = (448 / largest * weight).to(FLOAT8), (largest / 448)[:, 0]
    return {name: inputs[name] for name in ("x", "w1", "w2", "scale_1", "scale_2", "b1", "b2", "activation")}


def trivial(x, w2, b2=None, **_):
    return None if x.numel() and w2.numel() else torch.zeros_like(x) if b2 is None else torch.zeros_like(x) + b2


def tolerance(dtype: torch.dtype, **sizes) -> Tolerance:
    """Judged by twice PyTorch's own error; this is what float32 sums add, and the rounding to float8, which errs by up to 1/16 of a number."""
    exact = forward.tolerance(dtype, **sizes)
    return Tolerance(relative=exact.relative, absolute=exact.absolute + 0.02)


def bytes_moved(dtype, *, tokens, embed, ffn, activation="gelu", bias=False, **_) -> int:
    rows = 2 * ffn if is_gated(activation) else ffn
    return 2 * tokens * embed * dtype.itemsize + rows * embed + embed * ffn + 4 * (rows + embed) + (rows + embed) * bias * dtype.itemsize


def load_variants() -> Mapping[str, Variant]:
    from labkernels.ffn.fp8 import VARIANTS

    return VARIANTS


OP = Op(
    name="ffn_fp8",
    summary="ffn with weights in 8-bit floats, tokens and h rounded to them on the way",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=trivial,
    make_inputs=make_inputs,
    axes=("token", "dim"),
    dtypes=(torch.bfloat16,),
    small_shapes=(shape(3, 16, 32, "swiglu", bias=True),),
    check_shapes=(shape(1, 16, 16), shape(20, 48, 80, "swiglu", bias=True), shape(9, 64, 32, bias=True, gap=3)),
    large_shapes=(shape(300, 768, 3072, bias=True), shape(1000, 1024, 2816, "swiglu")),
    tolerance=tolerance,
    element_times=4.0,
    complete_shape=forward.complete_shape,
    sweep={"dtype": ["bfloat16"], "tokens": [512, 4096], "activation": ["swiglu"]},
    record_sweeps=({"dtype": ["bfloat16"], "tokens": [512, 4096], "activation": ["swiglu"], **LLAMA_7B},),
    flops=forward.flops,
    bytes_moved=bytes_moved,
    compute_ceiling="float8_e4m3fn",
    peers={"scaled_mm": Peer("scaled_mm", native, lambda x, **_: None if x.is_cuda else "needs a GPU")},
)
