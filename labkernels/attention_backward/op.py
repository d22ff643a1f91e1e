"""The operation `attention_backward`: the gradients of q, k and v. What it is, on what it is judged, and what it costs.

With S = q k^T * scale + mask, P = softmax(S) and out = P v, the gradient dO of `out` gives

    dV = P^T dO        dP = dO V^T        dS = P * (dP - delta)        dQ = dS K * scale        dK = dS^T Q * scale

where delta, one number a query, is the sum of dO * out over the row. P is not kept: it is worked out again from lse, the logarithm of each
softmax's sum, as exp(S - lse). Shapes and options are those of `attention`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.attention import op as forward
from labkernels.attention.op import DTYPES, shape
from labkernels.attention_backward.mistakes import hints
from labkernels.attention_backward.peers import PEERS, native
from labkernels.attention_backward.reference import forward as forward_pass
from labkernels.attention_backward.reference import reference
from labkernels.operation import Op, Tolerance, Variant, dtype_name

RESULTS = ("dq", "dk", "dv")


def problem(grad_out, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None, deterministic=False) -> str | None:
    """What is wrong with these inputs, or None."""
    wrong = forward.problem(q, k, v, causal, scale, window=window, mask=mask)
    return wrong or results_problem(grad_out, out, lse, q, q.shape[:3])


def results_problem(grad_out, out, lse, q, lse_shape) -> str | None:
    """What keeps grad_out, out and lse from belonging to q."""
    for name, tensor, shape, dtype in (("grad_out", grad_out, q.shape, q.dtype), ("out", out, q.shape, q.dtype), ("lse", lse, lse_shape, torch.float32)):
        if tensor.shape != shape:
            return f"{name} has shape {tuple(tensor.shape)}; it must be {tuple(shape)}"
        if tensor.dtype != dtype:
            return f"{name} is {dtype_name(tensor.dtype)}; it must be {dtype_name(dtype)}"
        if tensor.device != q.device:
            return f"{name} is on {tensor.device}, q is on {q.device}; both must be on one device"
    return None


def make_inputs(
    generator, device, dtype, *, batch, heads, kv_heads, seq_len, kv_len, head_dim, causal, scale=None, magnitude=1.0, layout="contiguous",
    window=None, mask=None, deterministic=None,
) -> dict:  # fmt: skip
    """Inputs of the forward pass as `attention` makes them, a normally distributed grad_out laid out as q, and the forward pass's out and lse."""
    sizes = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "seq_len": seq_len, "kv_len": kv_len, "head_dim": head_dim}
    options = {"causal": causal, "scale": scale, "magnitude": magnitude, "layout": layout, "window": window, "mask": mask}
    inputs = forward.make_inputs(generator, device, dtype, **sizes, **options)
    grad = torch.empty_like(inputs["q"])
    grad.copy_(torch.randn(grad.shape, generator=generator, device=generator.device))
    out, lse = forward_pass(**inputs)
    tensors = {"grad_out": grad, **{name: inputs.pop(name) for name in ("q", "k", "v")}, "out": out, "lse": lse}
    return tensors | inputs | ({} if deterministic is None else {"deterministic": deterministic})


def tolerance(dtype: torch.dtype, *, heads, kv_heads, seq_len, kv_len, head_dim, magnitude=1.0, **other) -> Tolerance:
    """As of the forward pass for a probability. But a gradient of q or k has the size of k or q, and sums of opposite signs cancel."""
    length = max(kv_len, seq_len * heads // kv_heads)
    found = forward.tolerance(dtype, kv_len=length, head_dim=head_dim, magnitude=magnitude, **other)
    return Tolerance(found.relative, 4 * max(1.0, magnitude) * found.absolute)


def complete_shape(dtype, deterministic=None, **sizes) -> dict:
    complete = forward.complete_shape(dtype, **sizes)
    return complete if deterministic is None else {**complete, "deterministic": deterministic}


def bytes_moved(dtype, *, batch, heads, seq_len, deterministic=None, **sizes) -> int:
    """Everything read once (q, k, v, out, grad_out, lse, the mask) and the three gradients written once: twice the forward pass's, and lse."""
    sizes |= {"batch": batch, "heads": heads, "seq_len": seq_len}
    mask_bytes = forward.bytes_moved(dtype, **sizes) - forward.bytes_moved(dtype, **{**sizes, "mask": None})
    return 2 * forward.bytes_moved(dtype, **{**sizes, "mask": None}) + mask_bytes + 4 * batch * heads * seq_len


def trivial(q, k, v, **_):
    """The gradients if there is no query, or no key: zeros."""
    if q.numel() and k.shape[2]:
        return None
    return tuple(torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in (q, k, v))


def load_variants() -> Mapping[str, Variant]:
    from labkernels.attention_backward.variants import VARIANTS

    return VARIANTS


OP = Op(
    name="attention_backward",
    summary="the gradients of attention: dq, dk and dv from that of its result",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=trivial,
    make_inputs=make_inputs,
    axes=("batch", "head", "row", "dim"),
    results=RESULTS,
    dtypes=DTYPES,
    optional=frozenset({"window", "mask", "deterministic"}),
    deterministic=False,
    small_shapes=(
        shape(1),
        shape(5, kv_len=70, heads=2, kv_heads=1, causal=True),
        shape(21, kv_len=40, window=(9, 3), head_dim=128),
        shape(18, kv_len=35, causal=True, mask="bias", heads=2),
        shape(70, kv_len=130, causal=True, deterministic=True),
    ),
    check_shapes=(
        shape(1),
        shape(3, causal=True),
        shape(33),
        shape(65, heads=2, causal=True),
        shape(100, kv_len=37),
        shape(37, kv_len=140, causal=True),
        shape(1, kv_len=130, causal=True),
        shape(130, kv_len=1),
        shape(40, batch=2, heads=4, kv_heads=2),
        shape(35, batch=2, heads=6, kv_heads=1, causal=True),
        shape(70, head_dim=128),
        shape(48, head_dim=128, causal=True, heads=2, kv_heads=1),
        shape(19, head_dim=7),
        shape(30, head_dim=80),
        shape(34, head_dim=192),
        shape(33, magnitude=3.0),
        shape(45, scale=0.3),
        shape(34, batch=2, heads=3, layout="seq_first"),
        shape(34, batch=2, heads=2, causal=True, layout="packed"),
        shape(75, window=(20, 0)),
        shape(66, kv_len=131, window=(40, None), causal=True, heads=2, kv_heads=1),
        shape(131, kv_len=66, window=(None, None), causal=True),  # the first queries see no key
        shape(33, kv_len=70, batch=2, heads=2, mask="padding"),
        shape(40, kv_len=67, heads=4, kv_heads=2, mask="pairs", causal=True, batch=2),
        shape(70, kv_len=33, mask="whole_queries", layout="seq_first", heads=2),
        shape(35, kv_len=66, batch=2, heads=2, kv_heads=1, mask="bias"),
        shape(45, kv_len=70, heads=2, mask="float32_bias", causal=True, scale=0.3),
        shape(140, kv_len=270, causal=True, heads=2, kv_heads=1, deterministic=True),
    ),
    large_shapes=(
        shape(1000, heads=4, kv_heads=2, causal=True, head_dim=128),
        shape(2048, heads=2),
        shape(777, kv_len=1555, batch=2, heads=8, kv_heads=1, causal=True),
        shape(2048, head_dim=64, heads=4, causal=True, deterministic=True),
        shape(700, heads=2, head_dim=256, causal=True),
        shape(1500, heads=2, kv_heads=1, window=(500, 0)),
        shape(600, kv_len=900, batch=2, heads=4, mask="padding", causal=True, head_dim=128),
        shape(900, heads=4, mask="bias"),
    ),
    tolerance=tolerance,
    element_times=4.0,  # as a whole twice, as ever; but the worst of few elements, products of two rounded numbers, is a matter of luck
    hints=hints,
    complete_shape=complete_shape,
    sweep={"dtype": ["bfloat16"], "seq_len": [512, 1024, 2048, 4096, 8192], "head_dim": [128], "causal": [False]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "head_dim": [64, 128], "causal": [False, True], "seq_len": [512, 1024, 2048, 4096, 8192, 16384]},
        {"dtype": ["float32"], "head_dim": [64, 128], "causal": [False, True], "seq_len": [512, 1024, 2048, 4096]},
        {"dtype": ["bfloat16"], "head_dim": [256], "causal": [False, True], "seq_len": [2048, 8192]},
    ),
    flops=lambda *, head_dim, deterministic=None, **other: 10 * head_dim * forward.pairs(**other),
    bytes_moved=bytes_moved,
    peers=PEERS,
)
