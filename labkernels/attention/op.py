"""The operation `attention`, forward: softmax(q k^T * scale + mask) v. What it is, on what it is judged, and what it costs.

q is (batch, heads, seq_len, head_dim), k and v are (batch, kv_heads, kv_len, head_dim). `heads` is a multiple of `kv_heads`: query head h
reads key head h // (heads // kv_heads) (grouped-query attention). Causal masks and windows are aligned bottom right: query i stands at key
p = i + kv_len - seq_len, the last query at the last key. `scale` is 1 / sqrt(head_dim) when not given. A query that may see no key gets
zeros, as PyTorch gives since 2.5 (before that, NaN).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from labkernels.attention.mistakes import hints
from labkernels.attention.peers import PEERS, native
from labkernels.attention.reference import reference
from labkernels.operation import Op, Tolerance, Variant, dtype_name

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def problem(q, k, v, causal=False, scale=None, *, window=None, mask=None, return_lse=False) -> str | None:
    """What is wrong with these inputs, or None. Shapes first, so that a wrong one is named before anything is launched."""
    tensors = {"q": q, "k": k, "v": v}
    for name, tensor in tensors.items():
        if tensor.dim() != 4:
            return f"{name} has shape {tuple(tensor.shape)}; it must have four axes, (batch, heads, seq, head_dim)"
    if wrong := together(tensors, {"batch": 0, "head_dim": 3}):
        return wrong
    if k.shape != v.shape:
        return f"k has shape {tuple(k.shape)}, v has {tuple(v.shape)}; both must be equal"
    return heads_problem(q.shape[1], k.shape[1]) or window_problem(window) or _mask_problem(mask, q, k)


def together(tensors: Mapping[str, torch.Tensor], shared_axes: Mapping[str, int]) -> str | None:
    """What keeps q, k and v from being used together: dtypes, devices, or axes that must be equally long."""
    q = tensors["q"]
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            return f"{name} is {dtype_name(tensor.dtype)}; it must be {', '.join(map(dtype_name, DTYPES[:-1]))} or {dtype_name(DTYPES[-1])}"
    for name in ("k", "v"):
        other = tensors[name]
        for what, axis in shared_axes.items():
            if other.shape[axis] != q.shape[axis]:
                return f"{name} has {what} {other.shape[axis]}, q has {q.shape[axis]}; both must be equal"
        if other.dtype != q.dtype:
            return f"{name} is {dtype_name(other.dtype)}, q is {dtype_name(q.dtype)}; both must be equal"
        if other.device != q.device:
            return f"{name} is on {other.device}, q is on {q.device}; both must be on one device"
    return None


def heads_problem(heads: int, kv_heads: int) -> str | None:
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads):
        return f"q has {heads} heads, k has {kv_heads}; the first must be a multiple of the second"
    return None


def window_problem(window) -> str | None:
    if window is None:
        return None
    sides = tuple(window) if isinstance(window, (tuple, list)) else ()
    if len(sides) == 2 and all(side is None or isinstance(side, int) and side >= 0 for side in sides):
        return None
    return f"window is {window!r}; it must be (left, right), each how many keys may be seen on that side: 0 or more, or None for all"


def _mask_problem(mask, q, k) -> str | None:
    if mask is None:
        return None
    full = (*q.shape[:3], k.shape[2])
    if not isinstance(mask, torch.Tensor):
        return f"mask is a {type(mask).__name__}; it must be a tensor"
    if mask.dtype not in (torch.bool, torch.float32, q.dtype):
        return f"mask is {dtype_name(mask.dtype)}; it must be bool (true: may be seen), or float32 or of q's dtype (added to the scores)"
    if mask.device != q.device:
        return f"mask is on {mask.device}, q is on {q.device}; both must be on one device"
    if mask.dim() > 4 or any(size not in (1, wanted) for size, wanted in zip(mask.shape[::-1], full[::-1])):
        return f"mask has shape {tuple(mask.shape)}; it must be broadcastable to (batch, heads, seq_len, kv_len) = {full}"
    return None


def shape(seq_len: int, **other) -> dict:
    """A complete shape from what differs from one batch, one head of 64, as many keys as queries, no mask."""
    heads = other.get("heads", 1)
    return {"batch": 1, "heads": heads, "kv_heads": heads, "seq_len": seq_len, "kv_len": seq_len, "head_dim": 64, "causal": False, **other}


def make_inputs(
    generator, device, dtype, *, batch, heads, kv_heads, seq_len, kv_len, head_dim, causal, scale=None, magnitude=1.0, layout="contiguous",
    window=None, mask=None,
) -> dict:  # fmt: skip
    """Normally distributed q, k, v; q and k times `magnitude`. Layout `seq_first` is a view of (batch, seq, heads, head_dim), as a model's
    linear layers write it; `packed` cuts all three out of one tensor with a longer last axis. `mask` names one of MASKS."""

    def tensor(heads, seq, size):
        stored = {
            "contiguous": (batch, heads, seq, head_dim),
            "seq_first": (batch, seq, heads, head_dim),
            "packed": (batch, heads, seq, 3 * head_dim),
        }[layout]
        values = (size * torch.randn(stored, generator=generator, device=generator.device)).to(device, dtype)
        return {"contiguous": values, "seq_first": values.transpose(1, 2), "packed": values[..., head_dim : 2 * head_dim]}[layout]

    inputs = {"q": tensor(heads, seq_len, magnitude), "k": tensor(kv_heads, kv_len, magnitude), "v": tensor(kv_heads, kv_len, 1.0)}
    inputs |= {"causal": causal, "scale": scale}
    if window is not None:
        inputs["window"] = window
    if mask is not None:
        axes, kind = MASKS[mask]
        sizes = {"batch": batch, "heads": heads, "seq_len": seq_len, "kv_len": kv_len}
        values = torch.randn([sizes.get(axis, 1) for axis in axes], generator=generator, device=generator.device).to(device)
        inputs["mask"] = values > -0.5 if kind is bool else values.to(kind or dtype)
    return inputs


MASKS = {  # what the mask is called in a shape: its axes (a 1 is broadcast), and its dtype (None: q's)
    "padding": (("batch", 1, 1, "kv_len"), bool),
    "pairs": (("batch", "heads", "seq_len", "kv_len"), bool),
    "one_for_all": (("seq_len", "kv_len"), bool),
    "whole_queries": (("seq_len", 1), bool),  # some queries see nothing at all
    "bias": ((1, "heads", "seq_len", "kv_len"), None),
    "float32_bias": (("seq_len", "kv_len"), torch.float32),
}


def pairs(*, batch, heads, seq_len, kv_len, causal, window=None, **_) -> int:
    """How many pairs of a query and a key that its causal mask and window let it see there are. (Other masks save no work.)"""
    left, right = window or (None, None)
    position = torch.arange(seq_len) + kv_len - seq_len
    first = torch.zeros_like(position) if left is None else (position - left).clamp(min=0)
    end = torch.full_like(position, kv_len)
    for bound in ([0] if causal else []) + ([right] if right is not None else []):
        end = torch.minimum(end, position + bound + 1)
    return batch * heads * int((end - first).clamp(min=0).sum())


def tolerance(dtype: torch.dtype, *, kv_len, head_dim, magnitude=1.0, scale=None, mask=None, **_) -> Tolerance:
    """A score's error is a relative error of its probability, so the larger the scores, the less exact any float32 attention is."""
    epsilon = torch.finfo(torch.float32).eps
    score_size = magnitude**2 * math.sqrt(head_dim) * (abs(scale) if scale is not None else 1 / math.sqrt(head_dim))
    if mask is not None and MASKS[mask][1] is not bool:
        score_size += 3.0  # normally distributed, and added
    return Tolerance(relative=epsilon * (16 + 2 * kv_len**0.5), absolute=epsilon * (32 + 64 * score_size))


def complete_shape(
    dtype, *, seq_len, head_dim=128, batch=None, heads=None, kv_heads=None, kv_len=None, causal=False, window=None, mask=None
) -> dict:
    """float32: one batch of 32 heads. Half precision: 16384 tokens of a model 2048 wide, the shapes of FlashAttention's papers."""
    half_precision = dtype != torch.float32
    heads = heads or (max(1, 2048 // head_dim) if half_precision else 32)
    batch = batch or (max(1, 16_384 // seq_len) if half_precision else 1)
    sizes = {"batch": batch, "heads": heads, "kv_heads": kv_heads or heads, "kv_len": kv_len or seq_len, "head_dim": head_dim}
    options = {name: value for name, value in (("window", window), ("mask", mask)) if value is not None}
    return shape(seq_len, **sizes, causal=causal, **options)


def bytes_moved(dtype, *, batch, heads, kv_heads, seq_len, kv_len, head_dim, mask=None, **_) -> int:
    """q, k, v and the mask read once and the result written once: what flash attention moves; the N x N matrix is not in it."""
    mask_bytes = 0
    if mask is not None:
        axes, kind = MASKS[mask]
        sizes = {"batch": batch, "heads": heads, "seq_len": seq_len, "kv_len": kv_len}
        mask_bytes = math.prod(sizes.get(axis, 1) for axis in axes) * (1 if kind is bool else (kind or dtype).itemsize)
    return batch * head_dim * 2 * (heads * seq_len + kv_heads * kv_len) * dtype.itemsize + mask_bytes


def trivial(q, k, return_lse=False, **_):
    """The result if there is no query, or no key: zeros, as PyTorch gives."""
    if q.numel() and k.shape[2]:
        return None
    out = q.new_zeros(q.shape)
    return (out, q.new_full(q.shape[:3], -torch.inf, dtype=torch.float32)) if return_lse else out


def load_variants() -> Mapping[str, Variant]:
    from labkernels.attention.variants import VARIANTS

    return VARIANTS


OP = Op(
    name="attention",
    summary="softmax(q k^T * scale + mask) v, causal, windowed or masked, with grouped-query heads",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=trivial,
    make_inputs=make_inputs,
    axes=("batch", "head", "query", "dim"),
    dtypes=DTYPES,
    optional=frozenset({"window", "mask"}),
    small_shapes=(
        shape(1),
        shape(33, head_dim=64, causal=True),
        shape(5, kv_len=70, heads=2, kv_heads=1, causal=True),
        shape(19, head_dim=128),
        shape(21, kv_len=40, window=(9, 3), heads=2, kv_heads=1),
        shape(18, kv_len=35, causal=True, mask="bias", heads=2),
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
        shape(75, window=(20, 0)),
        shape(70, window=(0, 5), head_dim=128),
        shape(66, kv_len=131, window=(40, None), causal=True, heads=2, kv_heads=1),
        shape(131, kv_len=66, window=(None, None), causal=True),  # the first queries see no key
        shape(90, kv_len=40, window=(30, 10), head_dim=80),
        shape(33, kv_len=70, batch=2, heads=2, mask="padding"),
        shape(40, kv_len=67, heads=4, kv_heads=2, mask="pairs", causal=True, batch=2),
        shape(67, mask="one_for_all", head_dim=128),
        shape(70, kv_len=33, mask="whole_queries", layout="seq_first", heads=2),
        shape(35, kv_len=66, batch=2, heads=2, kv_heads=1, mask="bias"),
        shape(66, causal=True, mask="bias", window=(17, None), head_dim=32),
        shape(45, kv_len=70, heads=2, mask="float32_bias", causal=True, scale=0.3),
    ),
    large_shapes=(
        shape(1000, heads=4, kv_heads=2, causal=True, head_dim=128),
        shape(2048, heads=2),
        shape(777, kv_len=1555, batch=2, heads=8, kv_heads=1, causal=True),
        shape(1, kv_len=5000, batch=3, heads=8, kv_heads=2, head_dim=128),
        shape(4096, head_dim=64, causal=True),
        shape(700, heads=2, head_dim=256, causal=True),
        shape(3000, heads=2, kv_heads=1, window=(500, 0)),
        shape(600, kv_len=900, batch=2, heads=4, mask="padding", causal=True, head_dim=128),
        shape(900, heads=4, mask="bias"),
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
        {"dtype": ["bfloat16"], "head_dim": [64, 128], "causal": [False, True], "seq_len": [16384]},
        {"dtype": ["bfloat16"], "head_dim": [256], "causal": [False, True], "seq_len": [512, 1024, 2048, 4096, 8192, 16384]},
    ),
    flops=lambda *, head_dim, **other: 4 * head_dim * pairs(**other),
    bytes_moved=bytes_moved,
    peers=PEERS,
)
