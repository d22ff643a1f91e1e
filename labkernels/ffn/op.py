"""The operation `ffn`: act(x w1^T + b1) w2^T + b2. What it is, on what it is judged, and what it costs.

x is (tokens, embed); weights lie as nn.Linear keeps them, w1 (ffn, embed) and w2 (embed, ffn). For swiglu w1 is packed, (2 ffn, embed): the
rows of all gates, then those of all ups, and so is b1. One matrix is one product, one gradient and one launch; `torch.cat([gate, up])` makes it
of a Llama checkpoint's two. Sums are kept in float32, h is rounded to the dtype of x.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.ffn.mistakes import hints
from labkernels.ffn.peers import PEERS, native
from labkernels.ffn.reference import ACTIVATIONS, is_gated, reference
from labkernels.operation import Op, Tolerance, Variant, dtype_name

LLAMA_7B = {"embed": [4096], "ffn": [11008]}


def problem(x, w1, w2, b1=None, b2=None, activation="gelu") -> str | None:
    """What is wrong with these inputs, or None. Shapes first, so that a wrong one is named before anything is launched."""
    if activation not in ACTIVATIONS:
        return f"activation is {activation!r}; it must be one of {', '.join(map(repr, ACTIVATIONS))}"
    tensors = {name: t for name, t in (("x", x), ("w1", w1), ("w2", w2), ("b1", b1), ("b2", b2)) if t is not None}
    first = "2 ffn" if is_gated(activation) else "ffn"
    axes = {"x": "(tokens, embed)", "w1": f"({first}, embed)", "w2": "(embed, ffn)", "b1": f"({first},)", "b2": "(embed,)"}
    for name, tensor in tensors.items():
        count = 1 if name.startswith("b") else 2
        if tensor.dim() != count:
            return f"{name} has shape {tuple(tensor.shape)}; it must have {'two axes' if count == 2 else 'one axis'}, {axes[name]}"
        if tensor.dtype not in OP.dtypes:
            return f"{name} is {dtype_name(tensor.dtype)}; it must be {', '.join(map(dtype_name, OP.dtypes[:-1]))} or {dtype_name(OP.dtypes[-1])}"
        if tensor.dtype != x.dtype:
            return f"{name} is {dtype_name(tensor.dtype)}, x is {dtype_name(x.dtype)}; both must be equal"
        if tensor.device != x.device:
            return f"{name} is on {tensor.device}, x is on {x.device}; both must be on one device"
    embed, ffn = x.shape[1], w2.shape[1]
    rows = 2 * ffn if is_gated(activation) else ffn
    for name, shape in (("w1", (rows, embed)), ("w2", (embed, ffn)), ("b1", (rows,)), ("b2", (embed,))):
        if name in tensors and tensors[name].shape != shape:
            packed = ", gates and ups one after the other" if is_gated(activation) and name in ("w1", "b1") else ""
            return f"{name} has shape {tuple(tensors[name].shape)}; with x {tuple(x.shape)} and w2 {tuple(w2.shape)} it must be {shape}{packed}"
    for name, tensor in tensors.items():
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            return f"{name} has strides {tensor.stride()}; its last axis must be dense in memory (stride 1)"
    return None


def shape(tokens: int, embed: int, ffn: int, activation: str = "gelu", **other) -> dict:
    return {"tokens": tokens, "embed": embed, "ffn": ffn, "activation": activation, "bias": False, **other}


def make_inputs(generator, device, dtype, *, tokens, embed, ffn, activation="gelu", bias=False, gap=0, magnitude=1.0) -> dict:
    """Normally distributed tokens, times `magnitude`; weights that keep the size of what they multiply. Rows of x begin `gap` elements after the
    end of the one before."""

    def tensor(rows, columns, size=1.0):
        return (size * torch.randn((rows, columns), generator=generator, device=generator.device)).to(device, dtype)

    rows = 2 * ffn if is_gated(activation) else ffn
    inputs = {
        "x": tensor(tokens, embed + gap, magnitude)[:, :embed],
        "w1": tensor(rows, embed, max(embed, 1) ** -0.5),
        "w2": tensor(embed, ffn, max(ffn, 1) ** -0.5),
        "b1": tensor(1, rows)[0] if bias else None,
        "b2": tensor(1, embed)[0] if bias else None,
    }
    return {**inputs, "activation": activation}


def tolerance(dtype: torch.dtype, *, embed, ffn, magnitude=1.0, **_) -> Tolerance:
    """Two chained sums, of `embed` and of `ffn` terms, whose results are of the size of x, or, gated, of its square."""
    epsilon, size = torch.finfo(torch.float32).eps, max(1.0, magnitude) ** 2
    return Tolerance(relative=epsilon * (16 + embed**0.5 + ffn**0.5), absolute=4 * epsilon * size * (16 + embed**0.5 + ffn**0.5))


def complete_shape(dtype, *, tokens, embed=4096, ffn=11008, activation="gelu", bias=False) -> dict:
    """Llama 7B's sizes unless told otherwise."""
    return shape(tokens, embed, ffn, activation) | {"bias": bias}


def flops(*, tokens, embed, ffn, activation="gelu", **_) -> int:
    return 2 * tokens * embed * ffn * (3 if is_gated(activation) else 2)


def bytes_moved(dtype, *, tokens, embed, ffn, activation="gelu", bias=False, **_) -> int:
    """Tokens and weights read once, the result written once. h is not counted: nobody asked for it."""
    rows = 2 * ffn if is_gated(activation) else ffn
    return (2 * tokens * embed + rows * embed + embed * ffn + (rows + embed) * bias) * dtype.itemsize


def trivial(x, w1, w2, b1=None, b2=None, activation="gelu"):
    """The result where there is nothing to multiply: b2, or zeros."""
    if x.numel() and w2.numel():
        return None
    y = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    return y if b2 is None else y + b2


def load_variants() -> Mapping[str, Variant]:
    from labkernels.ffn.variants import VARIANTS

    return VARIANTS


OP = Op(
    name="ffn",
    summary="act(x w1^T + b1) w2^T + b2 with GELU or SwiGLU, the feed-forward network of a transformer",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=trivial,
    make_inputs=make_inputs,
    axes=("token", "dim"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    small_shapes=(
        shape(1, 3, 5),
        shape(3, 32, 96, "swiglu", bias=True),
        shape(18, 16, 72, "gelu_tanh"),
    ),
    check_shapes=(
        shape(1, 1, 1),
        shape(3, 33, 5, "swiglu"),
        shape(33, 8, 24, "gelu_tanh", bias=True),
        shape(1, 96, 32, "gelu_tanh"),
        shape(11, 544, 160, "swiglu", bias=True),
        shape(5, 64, 136, "swiglu", bias=True),
        shape(70, 40, 72, "swiglu", gap=8),
        shape(16, 130, 72, bias=True, gap=1),
        shape(20, 72, 64, magnitude=20.0),
    ),
    large_shapes=(
        shape(1, 4096, 11008, "swiglu"),
        shape(16, 1024, 2816, bias=True),
        shape(7, 512, 2048, "gelu_tanh"),
        shape(300, 768, 3072, bias=True),
        shape(1000, 1024, 2816, "swiglu", bias=True),
        shape(129, 520, 1000, "swiglu"),
    ),
    tolerance=tolerance,
    element_times=3.0,  # the worst of few elements is a matter of luck; as a whole at most twice PyTorch's error, as ever
    hints=hints,
    complete_shape=complete_shape,
    sweep={"dtype": ["bfloat16"], "tokens": [1, 16, 512, 4096], "activation": ["swiglu"]},
    record_sweeps=(
        {"dtype": ["float32"], "tokens": [512, 1024, 2048, 4096], "activation": ["gelu"], **LLAMA_7B},
        {"dtype": ["bfloat16"], "tokens": [1, 2, 4, 8, 16, 512, 4096], "activation": ["swiglu"], **LLAMA_7B},
        {"dtype": ["bfloat16"], "tokens": [1, 4096], "activation": ["gelu"], **LLAMA_7B},
        {"dtype": ["float32"], "tokens": [1, 16, 64, 4096], "activation": ["swiglu"], **LLAMA_7B},
    ),
    flops=flops,
    bytes_moved=bytes_moved,
    memory_ceiling="read",
    peers=PEERS,
)
