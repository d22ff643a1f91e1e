"""The operation `attention`, forward: softmax(q k^T * scale) v. What it is, on what it is judged, and what it costs.

q is (batch, heads, seq_len, head_dim), k and v are (batch, kv_heads, kv_len, head_dim). `heads` is a multiple of `kv_heads`: query head h
reads key head h // (heads // kv_heads) (grouped-query attention). The causal mask is aligned bottom right: the last query sees all keys,
so query i sees keys 0 to i + kv_len - seq_len; it needs kv_len >= seq_len. `scale` is 1 / sqrt(head_dim) when not given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from labkernels.attention.mistakes import hints
from labkernels.attention.peers import PEERS, native
from labkernels.attention.reference import reference
from labkernels.operation import Op, Tolerance, Variant, dtype_name


def problem(q, k, v, causal=False, scale=None) -> str | None:
    """What is wrong with these inputs, or None. Shapes first, so that a wrong one is named before anything is launched."""
    tensors = {"q": q, "k": k, "v": v}
    for name, tensor in tensors.items():
        if tensor.dim() != 4:
            return f"{name} has shape {tuple(tensor.shape)}; it must have four axes, (batch, heads, seq, head_dim)"
        if tensor.dtype not in OP.dtypes:
            return f"{name} is {dtype_name(tensor.dtype)}; it must be {' or '.join(map(dtype_name, OP.dtypes))}"
    for name in ("k", "v"):
        other = tensors[name]
        for axis, what in ((0, "batch"), (3, "head_dim")):
            if other.shape[axis] != q.shape[axis]:
                return f"{name} has {what} {other.shape[axis]}, q has {q.shape[axis]}; both must be equal"
        if other.dtype != q.dtype:
            return f"{name} is {dtype_name(other.dtype)}, q is {dtype_name(q.dtype)}; both must be equal"
        if other.device != q.device:
            return f"{name} is on {other.device}, q is on {q.device}; both must be on one device"
    if k.shape != v.shape:
        return f"k has shape {tuple(k.shape)}, v has {tuple(v.shape)}; both must be equal"
    if 0 in q.shape or 0 in k.shape:
        return f"q has shape {tuple(q.shape)}, k has {tuple(k.shape)}; no axis may be empty"
    if q.shape[1] % k.shape[1]:
        return f"q has {q.shape[1]} heads, k has {k.shape[1]}; the first must be a multiple of the second"
    if causal and q.shape[2] > k.shape[2]:
        return f"causal with {q.shape[2]} queries and {k.shape[2]} keys: the first queries would see no key"
    return None


def shape(seq_len: int, **other) -> dict:
    """A complete shape from what differs from one batch, one head of 64, as many keys as queries, no mask."""
    heads = other.get("heads", 1)
    return {"batch": 1, "heads": heads, "kv_heads": heads, "seq_len": seq_len, "kv_len": seq_len, "head_dim": 64, "causal": False, **other}


def make_inputs(
    generator, device, dtype, *, batch, heads, kv_heads, seq_len, kv_len, head_dim, causal, scale=None, magnitude=1.0, layout="contiguous"
) -> dict:
    """Normally distributed q, k, v; q and k times `magnitude`. Layout `seq_first` is a view of (batch, seq, heads, head_dim), as a model's
    linear layers write it; `packed` cuts all three out of one tensor with a longer last axis."""

    def tensor(heads, seq, size):
        stored = {
            "contiguous": (batch, heads, seq, head_dim),
            "seq_first": (batch, seq, heads, head_dim),
            "packed": (batch, heads, seq, 3 * head_dim),
        }[layout]
        values = (size * torch.randn(stored, generator=generator, device=generator.device)).to(device, dtype)
        return {"contiguous": values, "seq_first": values.transpose(1, 2), "packed": values[..., head_dim : 2 * head_dim]}[layout]

    inputs = {"q": tensor(heads, seq_len, magnitude), "k": tensor(kv_heads, kv_len, magnitude), "v": tensor(kv_heads, kv_len, 1.0)}
    return {**inputs, "causal": causal, "scale": scale}


def pairs(*, batch, heads, seq_len, kv_len, causal, **_) -> int:
    """How many pairs of a query and a key it may see there are."""
    return batch * heads * (seq_len * kv_len - (seq_len * (seq_len - 1) // 2 if causal else 0))


def tolerance(dtype: torch.dtype, *, kv_len, head_dim, magnitude=1.0, scale=None, **_) -> Tolerance:
    """A score's error is a relative error of its probability, so the larger the scores, the less exact any float32 attention is."""
    epsilon = torch.finfo(torch.float32).eps
    score_size = magnitude**2 * math.sqrt(head_dim) * (abs(scale) if scale is not None else 1 / math.sqrt(head_dim))
    return Tolerance(relative=epsilon * (16 + 2 * kv_len**0.5), absolute=epsilon * (32 + 64 * score_size))


def complete_shape(dtype, *, seq_len, head_dim=128, batch=None, heads=None, kv_heads=None, kv_len=None, causal=False) -> dict:
    """float32: one batch of 32 heads. bfloat16: 16384 tokens of a model 2048 wide, the shapes of FlashAttention's papers."""
    half_precision = dtype != torch.float32
    heads = heads or (max(1, 2048 // head_dim) if half_precision else 32)
    batch = batch or (max(1, 16_384 // seq_len) if half_precision else 1)
    return shape(seq_len, batch=batch, heads=heads, kv_heads=kv_heads or heads, kv_len=kv_len or seq_len, head_dim=head_dim, causal=causal)


def bytes_moved(dtype, *, batch, heads, kv_heads, seq_len, kv_len, head_dim, **_) -> int:
    """q, k and v read once and the result written once: what flash attention moves; the N x N matrix is not in it."""
    return batch * head_dim * 2 * (heads * seq_len + kv_heads * kv_len) * dtype.itemsize


def load_variants() -> Mapping[str, Variant]:
    from labkernels.attention.variants import VARIANTS

    return VARIANTS


OP = Op(
    name="attention",
    summary="softmax(q k^T * scale) v, causal or not, with grouped-query heads",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    make_inputs=make_inputs,
    axes=("batch", "head", "query", "dim"),
    dtypes=(torch.float32, torch.bfloat16),
    small_shapes=(
        shape(1),
        shape(33, head_dim=64, causal=True),
        shape(5, kv_len=70, heads=2, kv_heads=1, causal=True),
        shape(19, head_dim=128),
    ),
    check_shapes=(
        shape(1),
        shape(3),
        shape(3, causal=True),
        shape(33),
        shape(33, causal=True),
        shape(64, heads=2),
        shape(65, heads=2, causal=True),
        shape(100, kv_len=37),
        shape(37, kv_len=100, causal=True),
        shape(1, kv_len=130, causal=True),
        shape(130, kv_len=1),
        shape(40, batch=2, heads=4, kv_heads=2),
        shape(35, batch=2, heads=6, kv_heads=1, causal=True),
        shape(70, head_dim=128),
        shape(48, head_dim=128, causal=True, heads=2, kv_heads=1),
        shape(50, head_dim=32, causal=True),
        shape(19, head_dim=7),
        shape(30, head_dim=80),
        shape(66, magnitude=10.0),
        shape(66, magnitude=10.0, causal=True, head_dim=128),
        shape(45, scale=0.3),
        shape(34, batch=2, heads=3, layout="seq_first"),
        shape(34, batch=2, heads=2, causal=True, layout="packed"),
    ),
    large_shapes=(
        shape(1000, heads=4, kv_heads=2, causal=True, head_dim=128),
        shape(2048, heads=2),
        shape(777, kv_len=1555, batch=2, heads=8, kv_heads=1, causal=True),
        shape(1, kv_len=5000, batch=3, heads=8, kv_heads=2, head_dim=128),
        shape(4096, head_dim=64, causal=True),
    ),
    tolerance=tolerance,
    hints=hints,
    complete_shape=complete_shape,
    sweep={"dtype": ["float32"], "seq_len": [512, 1024, 2048, 4096, 8192], "head_dim": [128], "causal": [False]},
    record_sweeps=(
        {
            "dtype": ["float32", "bfloat16"],
            "head_dim": [64, 128],
            "causal": [False, True],
            "seq_len": [512, 1024, 2048, 4096, 8192],
        },
    ),
    flops=lambda *, head_dim, **other: 4 * head_dim * pairs(**other),
    bytes_moved=bytes_moved,
    peers=PEERS,
)
