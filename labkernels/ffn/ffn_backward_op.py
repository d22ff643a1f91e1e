"""The operation `ffn_backward`: the gradients of a feed-forward network. What it is, on what it is judged, and what it costs.

With pre = x w1^T + b1, h = act(pre) and y = h w2^T + b2, the gradient dy of y gives

    dh = dy w2        dpre = dh act'(pre)        dx = dpre w1        dw1 = dpre^T x        dw2 = dy^T h        db1, db2: columns of dpre, dy added up

`pre` is what the forward pass has saved, (tokens, ffn), or for swiglu (tokens, 2 ffn), gates before ups; h is worked out again. Shapes and
layouts are those of `ffn`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.ffn import op as forward
from labkernels.ffn.op import LLAMA_7B, shape
from labkernels.ffn.peers import BACKWARD_PEERS, backward_native
from labkernels.ffn.reference import backward_reference, gradient, is_gated
from labkernels.operation import Op, Tolerance, Variant, dtype_name

RESULTS = ("dx", "dw1", "dw2", "db1", "db2")


def problem(grad_out, x, pre, w1, w2, activation="gelu", bias=False) -> str | None:
    """What is wrong with these inputs, or None."""
    wrong = forward.problem(x, w1, w2, activation=activation)
    if wrong:
        return wrong
    for name, tensor, shape in (("grad_out", grad_out, x.shape), ("pre", pre, (x.shape[0], w1.shape[0]))):
        if tensor.shape != shape:
            return f"{name} has shape {tuple(tensor.shape)}; it must be {tuple(shape)}"
        if tensor.dtype != x.dtype:
            return f"{name} is {dtype_name(tensor.dtype)}, x is {dtype_name(x.dtype)}; both must be equal"
        if tensor.device != x.device:
            return f"{name} is on {tensor.device}, x is on {x.device}; both must be on one device"
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            return f"{name} has strides {tensor.stride()}; its last axis must be dense in memory (stride 1)"
    return None


def make_inputs(generator, device, dtype, *, tokens, embed, ffn, activation="gelu", bias=False, gap=0, magnitude=1.0) -> dict:
    """Inputs of the forward pass as `ffn` makes them, the pre-activations that it gives, and a normally distributed grad_out. All five gradients are
    asked for; `bias` says whether pre has one."""
    sizes = {"tokens": tokens, "embed": embed, "ffn": ffn, "activation": activation, "bias": bias, "gap": gap, "magnitude": magnitude}
    inputs = forward.make_inputs(generator, device, dtype, **sizes)
    grad = torch.randn((tokens, embed), generator=generator, device=generator.device).to(device, dtype)
    pre = torch.nn.functional.linear(inputs["x"], inputs["w1"], inputs["b1"])
    return {"grad_out": grad, "x": inputs["x"], "pre": pre, "w1": inputs["w1"], "w2": inputs["w2"], "activation": activation, "bias": True}


def tolerance(dtype: torch.dtype, *, tokens, embed, ffn, magnitude=1.0, **_) -> Tolerance:
    """Sums of `embed`, `ffn` and `tokens` terms one after the other; a slope of GELU at a large x is the difference of numbers of its size."""
    epsilon, length, size = torch.finfo(torch.float32).eps, max(tokens, embed, 2 * ffn), max(1.0, magnitude) ** 2
    return Tolerance(relative=epsilon * (32 + length**0.5), absolute=8 * epsilon * size * (16 + length**0.5 + tokens**0.5 * 4))


def hints(failure) -> str | None:
    """Name the classic mistake whose result this is, one for each result."""
    inputs = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in failure.inputs.items()}
    grad_out, x, pre, w1, w2 = (inputs[name] for name in ("grad_out", "x", "pre", "w1", "w2"))
    if failure.reason != "mismatch" or x.shape[0] * w1.numel() > 1 << 24:
        return None
    activation, dh = inputs["activation"], grad_out @ w2
    dpre = gradient(dh, pre, activation)
    flat = torch.cat([dh, dh], 1) if is_gated(activation) else dh
    swapped = torch.cat(dpre.chunk(2, 1)[::-1], 1) if is_gated(activation) else None
    mistakes = [
        ("dx with the slope of the activation left out", flat @ w1),
        ("dw1 with the slope of the activation left out", flat.t() @ x),
        ("dw2 from pre, not from act(pre)", grad_out.t() @ pre[:, : w2.shape[1]]),
        ("dw1 of the average over tokens: gradients of weights are sums", dpre.t() @ x / x.shape[0]),
    ]
    if swapped is not None:
        mistakes += [("dx with the gradients of gate and up exchanged", swapped @ w1), ("dw1 with those of gate and up exchanged", swapped.t() @ x)]
    return failure.matching(mistakes)


def flops(*, tokens, embed, ffn, activation="gelu", **_) -> int:
    """Twice the forward pass: each weight takes part in two products, one for the tokens and one for itself."""
    return 2 * forward.flops(tokens=tokens, embed=embed, ffn=ffn, activation=activation)


def bytes_moved(dtype, *, tokens, embed, ffn, activation="gelu", bias=False, **_) -> int:
    """Everything read once, the gradients written once."""
    rows = 2 * ffn if is_gated(activation) else ffn
    return (3 * tokens * embed + tokens * rows + 2 * (rows * embed + embed * ffn) + (rows + embed) * bias) * dtype.itemsize


def trivial(grad_out, x, pre, w1, w2, activation="gelu", bias=False):
    """Zeros, and the sums of grad_out, where there is nothing to multiply."""
    if x.numel() and w2.numel():
        return None
    zeros = tuple(torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in (x, w1, w2))
    none = x.new_empty(0)
    return *zeros, x.new_zeros(w1.shape[0]) if bias else none, grad_out.sum(0) if bias else none


def load_variants() -> Mapping[str, Variant]:
    from labkernels.ffn.ffn_backward_variants import VARIANTS

    return VARIANTS


OP = Op(
    name="ffn_backward",
    summary="the gradients of ffn: dx, dw1, dw2, db1 and db2 from that of its result and the saved pre-activations",
    load_variants=load_variants,
    reference=backward_reference,
    native=backward_native,
    problem=problem,
    trivial=trivial,
    make_inputs=make_inputs,
    axes=("row", "col"),
    results=RESULTS,
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    small_shapes=(shape(3, 16, 24, "swiglu", bias=True), shape(18, 5, 9)),
    check_shapes=(
        shape(1, 1, 1, bias=True),
        shape(33, 24, 40, "swiglu", bias=True),
        shape(20, 9, 33),
        shape(40, 64, 72, "gelu_tanh", bias=True),
        shape(70, 40, 24, "swiglu", gap=8),
    ),
    large_shapes=(
        shape(300, 768, 3072, bias=True),
        shape(1000, 1024, 2816, "swiglu", bias=True),
        shape(129, 520, 1000, "swiglu"),
        shape(200, 512, 2048, "gelu_tanh"),
    ),
    tolerance=tolerance,
    element_times=4.0,
    hints=hints,
    complete_shape=forward.complete_shape,
    sweep={"dtype": ["bfloat16"], "tokens": [512, 4096], "activation": ["swiglu"]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "tokens": [512, 4096], "activation": ["swiglu"], **LLAMA_7B},
        {"dtype": ["float32"], "tokens": [512, 4096], "activation": ["gelu"], **LLAMA_7B},
    ),
    flops=flops,
    bytes_moved=bytes_moved,
    peers=BACKWARD_PEERS,
)
