"""The operation `gemv`: a weight times a few rows, RMSNorm before it, SwiGLU and the residual behind it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from labkernels.elementwise.peers import compiled, needs_gpu
from labkernels.operation import Op, Peer, Tolerance, Variant, dtype_name

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def reference(x, w, norm_weight=None, residual=None, activation=None, eps=1e-5, out_dtype=None) -> torch.Tensor:
    """In the precision of x."""
    if norm_weight is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * norm_weight
    y = x @ w.t()
    if activation is not None:
        gate, up = y.chunk(2, dim=-1)
        y = F.silu(gate) * up
    return y if residual is None else y + residual


def native(x, w, norm_weight=None, residual=None, activation=None, eps=1e-5, out_dtype=None) -> torch.Tensor:
    """PyTorch's own operations, of which cuBLAS does the product."""
    if norm_weight is not None:
        x = F.rms_norm(x, x.shape[-1:], norm_weight, eps)
    y = F.linear(x, w)
    if activation is not None:
        gate, up = y.chunk(2, dim=-1)
        y = F.silu(gate) * up
    y = y if residual is None else y + residual
    return y if out_dtype is None else y.to(out_dtype)


def problem(x, w, norm_weight=None, residual=None, activation=None, eps=1e-5, out_dtype=None) -> str | None:
    """What is wrong with these inputs, or None."""
    for name, tensor in (("x", x), ("w", w)):
        if tensor.dim() != 2:
            return f"{name} has shape {tuple(tensor.shape)}; it must have two axes"
    if x.dtype not in DTYPES:
        return f"x is {dtype_name(x.dtype)}; it must be {', '.join(map(dtype_name, DTYPES))}"
    if x.shape[1] != w.shape[1]:
        return f"x has {x.shape[1]} columns, w has {w.shape[1]}; both must be equal"
    if activation not in (None, "swiglu"):
        return f"activation is {activation!r}; it must be None or 'swiglu'"
    if activation is not None and w.shape[0] % 2:
        return f"w has {w.shape[0]} rows; swiglu takes as many gates as ups"
    if out_dtype not in (None, x.dtype, torch.float32):
        return f"out_dtype is {out_dtype}; it must be x's dtype or float32"
    outputs = w.shape[0] // (1 if activation is None else 2)
    expected = {"norm_weight": (norm_weight, (x.shape[1],)), "residual": (residual, (x.shape[0], outputs))}
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            return f"{name} has shape {tuple(tensor.shape)}; it must be {shape}"
    for name, tensor in {"w": w, "norm_weight": norm_weight, "residual": residual}.items():
        if tensor is None:
            continue
        if tensor.dtype != x.dtype:
            return f"{name} is {dtype_name(tensor.dtype)}, x is {dtype_name(x.dtype)}; both must be equal"
        if tensor.device != x.device:
            return f"{name} is on {tensor.device}, x is on {x.device}; both must be on one device"
        if not tensor.is_contiguous():
            return f"{name} has strides {tensor.stride()}; it must be contiguous"
    if x.shape[1] > 1 and x.stride(1) != 1:
        return f"x has strides {x.stride()}; the numbers of a row must be neighbours in memory"
    return None


def make_inputs(generator, device, dtype, *, m: int, n: int, k: int, norm=False, gated=False, residual=False, layout="contiguous") -> dict:
    def normal(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator, device=generator.device)).to(device, dtype)

    x = normal(m, 2 * k if layout == "apart" else k)[:, :k]
    outputs = n // 2 if gated else n
    return {
        "x": x,
        "w": normal(n, k, scale=max(k, 1) ** -0.5),
        "norm_weight": (1 + normal(k, scale=0.2)).to(dtype) if norm else None,
        "residual": normal(m, outputs) if residual else None,
        "activation": "swiglu" if gated else None,
    }


def shape(m: int, n: int, k: int, **other) -> dict:
    return {"m": m, "n": n, "k": k, **other}


def tolerance(dtype: torch.dtype, *, k, **_) -> Tolerance:
    eps = torch.finfo(torch.float32).eps
    return Tolerance(relative=8 * eps, absolute=4 * eps * max(k, 1) ** 0.5)


def hints(failure) -> str | None:
    """Name the classic mistake whose result this is."""
    from labkernels.lab.compare import doubled

    given = doubled(failure.inputs)
    mistakes = []
    if given["norm_weight"] is not None:
        mistakes.append(("the product without the norm", reference(**{**given, "norm_weight": None})))
    if given["residual"] is not None:
        mistakes.append(("the product without the residual", reference(**{**given, "residual": None})))
    if given["activation"] is not None:
        swapped = torch.cat(given["w"].chunk(2)[::-1])
        mistakes.append(("silu of the ups, not of the gates", reference(**{**given, "w": swapped})))
    return failure.matching(mistakes)


def load_variants() -> Mapping[str, Variant]:
    from labkernels.gemv.variants import VARIANTS

    return VARIANTS


def _trivial(x, w, activation=None, residual=None, out_dtype=None, **_):
    outputs = w.shape[0] // (1 if activation is None else 2)
    if x.shape[0] and outputs and x.shape[1]:
        return None
    zeros = torch.zeros((x.shape[0], outputs), dtype=out_dtype or x.dtype, device=x.device)
    return zeros if residual is None else zeros + residual


def _gpu(x, **_) -> str | None:
    return needs_gpu(x=x)


OP = Op(
    name="gemv",
    summary="a weight times a few rows, with RMSNorm before it, SwiGLU and the residual behind it",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=_trivial,
    make_inputs=make_inputs,
    axes=("row", "col"),
    dtypes=DTYPES,
    small_shapes=(shape(1, 5, 33), shape(1, 24, 96, norm=True, residual=True), shape(3, 16, 64, gated=True, norm=True)),
    check_shapes=(
        shape(1, 1, 32, residual=True),
        shape(1, 33, 128, norm=True),
        shape(3, 40, 160, norm=True, gated=True),
        shape(8, 70, 256, residual=True),
        shape(9, 17, 64, norm=True, residual=True, layout="apart"),
        shape(2, 6, 33, gated=True, norm=True),
        shape(33, 48, 96, gated=True, residual=True),
    ),
    large_shapes=(shape(1, 3072, 2048, norm=True), shape(2, 16_384, 2048, norm=True, gated=True), shape(16, 2048, 8192, residual=True)),
    tolerance=tolerance,
    element_times=4.0,  # x is rounded before it is normalised: other errors than PyTorch's, of the same size
    hints=hints,
    complete_shape=lambda dtype, *, m=1, n=16_384, k=2048, norm=False, gated=False, residual=False, **other: shape(
        m, n, k, norm=norm, gated=gated, residual=residual, **other
    ),
    sweep={"dtype": ["bfloat16"], "m": [1, 8], "n": [2048], "k": [2048, 8192], "residual": [True]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "m": [1, 4, 8, 16], "n": [3072], "k": [2048], "norm": [True]},
        {"dtype": ["bfloat16"], "m": [1, 4, 8, 16], "n": [2048], "k": [2048, 8192], "residual": [True]},
        {"dtype": ["bfloat16"], "m": [1, 4, 8, 16], "n": [16_384], "k": [2048], "norm": [True], "gated": [True]},
        {"dtype": ["bfloat16"], "m": [1, 4, 8, 16], "n": [128_256], "k": [2048], "norm": [True]},
        {"dtype": ["bfloat16"], "m": [1], "n": [28_672], "k": [4096], "norm": [True], "gated": [True]},
    ),
    flops=lambda *, m, n, k, **_: 2 * m * n * k,
    bytes_moved=lambda dtype, *, m, n, k, **_: (n * k + m * (n + k)) * dtype.itemsize,
    memory_ceiling="read",
    peers={"torch": Peer("torch", native, _gpu), "torch.compile": compiled(native, _gpu)},
)
