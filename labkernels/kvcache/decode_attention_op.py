"""The operation `decode_attention`: one query a sequence, or a few, against all the keys and values that a cache holds.

q is (batch, heads, head_dim), or (batch, heads, queries, head_dim) for the last `queries` tokens of each sequence, of which each sees itself and
what came before. The cache is contiguous or paged, of q's dtype or quantised: layout.py. lengths counts the tokens, the queries' own among them.
A query that sees no token gets zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from labkernels.kvcache.checks import cache_problem, on_one_device, table_problem
from labkernels.kvcache.launch import as_rows, capacity
from labkernels.kvcache.layout import FULL_DTYPES, LARGEST, quantise
from labkernels.kvcache.peers import PEERS
from labkernels.kvcache.reference import native, reference
from labkernels.operation import Op, Tolerance, Variant, dtype_name

STORED = {"same": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn}


def problem(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None) -> str | None:
    """What is wrong with these inputs, or None. Shapes first, so that a wrong one is named before anything is launched."""
    if q.dim() not in (3, 4):
        return f"q has shape {tuple(q.shape)}; it must have the axes (batch, heads, head_dim) or (batch, heads, queries, head_dim)"
    if q.dtype not in FULL_DTYPES:
        return f"q is {dtype_name(q.dtype)}; it must be {', '.join(map(dtype_name, FULL_DTYPES))}"
    if wrong := cache_problem(k, v, k_scale, v_scale):
        return wrong
    if k.dtype != q.dtype and k.dtype not in LARGEST:
        return f"k is {dtype_name(k.dtype)}, q is {dtype_name(q.dtype)}; both must be equal, or the cache int8 or float8_e4m3fn"
    if k.shape[3] != q.shape[-1]:
        return f"k has head_dim {k.shape[3]}, q has {q.shape[-1]}; both must be equal"
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        return f"q has {q.shape[1]} heads, k has {k.shape[1]}; the first must be a multiple of the second"
    if q.stride(-1) != 1 and q.shape[-1] > 1:
        return f"q has strides {q.stride()}; the elements of a query must be neighbours in memory (stride 1)"
    if wrong := on_one_device(q=q, k=k, v=v, lengths=lengths, block_table=block_table, k_scale=k_scale, v_scale=v_scale):
        return wrong
    return table_problem(k, lengths, block_table, q.shape[0])


def shape(batch: int, length: int, **other) -> dict:
    """A complete shape from what differs from one head of 64, contiguous, one query, all sequences of `length` tokens, a cache of q's dtype."""
    heads = other.get("heads", 1)
    return {
        "batch": batch, "length": length, "heads": heads, "kv_heads": heads, "head_dim": 64, "queries": 0, "page_size": 0, "cache": "same",
        "fill": "full", **other,
    }  # fmt: skip


def make_inputs(
    generator, device, dtype, *, batch, length, heads, kv_heads, head_dim, queries=0, page_size=0, cache="same", fill="full", magnitude=1.0, scale=None,
) -> dict:  # fmt: skip
    """Normally distributed q, k, v; q and k times `magnitude`. queries 0: q has no such axis. page_size 0: contiguous, else pages in random order.

    fill: `full`, all sequences have `length` tokens; `mixed`, 0 to `length`, and what lies beyond is NaN, or a page that does not exist.
    """

    def normal(*shape):
        return torch.randn(shape, generator=generator, device=generator.device)

    max_pages = -(-length // page_size) if page_size else 0
    pages = (batch * max_pages + 2, kv_heads, page_size, head_dim) if page_size else (batch, kv_heads, length, head_dim)
    q = (magnitude * normal(*((batch, heads, queries, head_dim) if queries else (batch, heads, head_dim)))).to(device, dtype)
    inputs = {"q": q}
    for name, size in (("k", magnitude), ("v", 1.0)):
        values = normal(*pages).mul_(size).to(device, dtype)
        if STORED[cache] is not None:
            values, inputs[f"{name}_scale"] = quantise(values, STORED[cache])
        inputs[name] = values
    lengths = torch.full((batch,), length, dtype=torch.int32)
    if fill == "mixed":
        lengths = torch.randint(0, length + 1, (batch,), generator=generator, device=generator.device).int().cpu()
        lengths[0] = length
        if batch > 2:
            lengths[1] = 0
    inputs["lengths"] = lengths.to(device)
    if page_size:
        table = torch.randperm(pages[0], generator=generator, device=generator.device)[: batch * max_pages].view(batch, max_pages).int().to(device)
        inputs["block_table"] = table
    if fill == "mixed":
        _spoil(inputs, page_size)
    if scale is not None:
        inputs["scale"] = scale
    return inputs


def _spoil(inputs: dict, page_size: int) -> None:
    """NaN where no token lies, and pages that do not exist in the table's unused entries."""
    if inputs["k"].is_meta:
        return
    k, lengths = inputs["k"], inputs["lengths"].tolist()
    used = torch.zeros(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
    for sequence, length in enumerate(lengths):
        if page_size == 0:
            used[sequence, :length] = True
            continue
        for i, page in enumerate(inputs["block_table"][sequence].tolist()):
            used[page, : max(0, length - i * page_size)] = True
        inputs["block_table"][sequence, -(-length // page_size) :] = 1 << 30
    for name in ("k", "v", "k_scale", "v_scale"):
        if name in inputs and inputs[name].is_floating_point() and inputs[name].itemsize > 1:
            inputs[name].transpose(1, 2)[~used] = torch.nan


def tolerance(dtype: torch.dtype, *, length, head_dim, magnitude=1.0, scale=None, **_) -> Tolerance:
    """As for `attention`: a score's error is a relative error of its probability."""
    epsilon = torch.finfo(torch.float32).eps
    score_size = magnitude**2 * math.sqrt(head_dim) * (abs(scale) if scale is not None else 1 / math.sqrt(head_dim))
    return Tolerance(relative=epsilon * (16 + 2 * length**0.5), absolute=epsilon * (32 + 64 * score_size))


def complete_shape(
    dtype, *, batch, length, heads=32, kv_heads=8, head_dim=128, queries=0, page_size=0, cache="same", fill="full"
) -> dict:  # fmt: skip
    """32 query heads and 8 of k and v, of 128 each: Llama 3 8B."""
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "queries": queries, "page_size": page_size}
    return shape(batch, length, **sizes, cache=cache, fill=fill)


def bytes_moved(dtype, *, batch, length, heads, kv_heads, head_dim, queries=0, cache="same", **_) -> int:
    """Keys, values and their scales of every token read once; q read and the result written once."""
    stored = STORED[cache]
    a_token = 2 * (head_dim * (stored or dtype).itemsize + (4 if stored else 0))
    return batch * (kv_heads * length * a_token + 2 * heads * max(1, queries) * head_dim * dtype.itemsize)


def trivial(q, k, block_table=None, **_):
    """The result if there is no query, or no room for a token: zeros."""
    return None if q.numel() and capacity(k, block_table) and k.shape[0] else q.new_zeros(q.shape)


def hints(failure) -> str | None:
    """Name the classic mistake whose result this is."""
    inputs = {name: value for name, value in failure.inputs.items()}
    q, k, lengths, table = inputs["q"], inputs["k"], inputs["lengths"], inputs.get("block_table")
    if failure.reason == "not_finite" and bool((lengths < capacity(k, table)).any()):
        return "What lies in the cache beyond a sequence's length is not a token: here it is NaN. A weight of 0 does not help, 0 * NaN is NaN."
    doubled = {name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value for name, value in inputs.items()}
    group = q.shape[1] // k.shape[1]
    mistakes = [("the scores are not multiplied by scale", {**doubled, "scale": 1.0})]
    if table is not None:
        mistakes += [("pages are read one after the other, not as the block table says", {**doubled, "block_table": torch.arange(table.numel(), device=q.device).view_as(table)})]
    for name in ("k_scale", "v_scale"):
        if name in inputs:
            mistakes += [(f"{name} is left out", {**doubled, name: torch.ones_like(doubled[name])})]
    if int(lengths.min()) > 0:
        mistakes += [("the last token of each sequence is left out", {**doubled, "lengths": lengths - 1})]
    found = [(what, reference(**changed)) for what, changed in mistakes]
    if group > 1 and k.shape[1] > 1:
        other = torch.arange(q.shape[1], device=q.device).view(group, -1).t().flatten()  # h % kv_heads in place of h // group
        found += [("query head h reads key head h % kv_heads, not h // (heads // kv_heads)", reference(**{**doubled, "q": doubled["q"][:, other]})[:, other.argsort()])]
    if as_rows(q).shape[2] > 1:
        everything = torch.cat([reference(**{**doubled, "q": query}) for query in as_rows(doubled["q"]).split(1, dim=2)], dim=2)
        found += [("each query sees the tokens behind it, too", everything.view_as(failure.want))]
    return failure.matching(found)


def load_variants() -> Mapping[str, Variant]:
    from labkernels.kvcache.decode_attention_variants import VARIANTS

    return VARIANTS


class DecodeAttention(Op):
    """v6 takes everything that v5 takes, but v5 is faster at what it takes: few tokens."""

    def pick(self, **inputs) -> Variant:
        cluster = self.variants["v5_cluster"]
        return cluster if cluster.accepts(**inputs) is None else super().pick(**inputs)


OP = DecodeAttention(
    name="decode_attention",
    summary="a few queries a sequence against a contiguous or paged cache of keys and values, with grouped-query heads",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=trivial,
    make_inputs=make_inputs,
    axes=("batch", "head", "query or dim", "dim"),  # the third is that of the queries where there is one
    dtypes=FULL_DTYPES,
    small_shapes=(
        shape(1, 3),
        shape(3, 40, heads=4, kv_heads=2, page_size=16, fill="mixed"),
        shape(2, 70, heads=4, kv_heads=1, queries=2, cache="int8", fill="mixed"),
    ),
    check_shapes=(
        shape(1, 1),
        shape(1, 33),
        shape(2, 130, heads=8, kv_heads=2),
        shape(4, 100, heads=4, kv_heads=2, fill="mixed"),
        shape(3, 150, heads=8, kv_heads=2, page_size=16, fill="mixed"),
        shape(1, 270, heads=4, kv_heads=2, magnitude=10.0, page_size=48),
        shape(2, 90, heads=4, kv_heads=2, queries=3, page_size=32, fill="mixed"),
        shape(2, 75, heads=4, kv_heads=2, cache="int8", page_size=16, fill="mixed"),
        shape(2, 75, heads=4, kv_heads=1, cache="fp8", scale=0.3),
    ),
    large_shapes=(
        shape(5, 3000, heads=32, kv_heads=8, head_dim=128, fill="mixed"),
        shape(5, 3000, heads=32, kv_heads=8, head_dim=128, fill="mixed", page_size=64),
        shape(40, 700, heads=16, kv_heads=1, head_dim=128, fill="mixed", page_size=16),
        shape(3, 2000, heads=32, kv_heads=8, head_dim=128, queries=5, fill="mixed", page_size=256),
        shape(3, 2000, heads=32, kv_heads=8, head_dim=128, cache="int8", fill="mixed", page_size=64),
        shape(3, 2000, heads=32, kv_heads=8, head_dim=128, cache="fp8", fill="mixed"),
        shape(2, 1500, heads=8, kv_heads=8, head_dim=256, fill="mixed"),
        shape(2, 20_000, heads=8, kv_heads=2, head_dim=64, page_size=128),
    ),
    tolerance=tolerance,
    hints=hints,
    complete_shape=complete_shape,
    sweep={"dtype": ["bfloat16"], "batch": [1, 8, 32], "length": [1024, 8192, 32_768], "page_size": [0]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "batch": [1, 8, 32], "length": [1024, 8192, 32_768], "page_size": [0, 64]},
        {"dtype": ["bfloat16"], "batch": [32], "length": [8192], "page_size": [64], "cache": ["int8", "fp8"]},
    ),
    flops=lambda *, batch, length, heads, head_dim, queries=0, **_: 4 * batch * heads * max(1, queries) * length * head_dim,
    bytes_moved=bytes_moved,
    memory_ceiling="read",
    peers=PEERS,
)
