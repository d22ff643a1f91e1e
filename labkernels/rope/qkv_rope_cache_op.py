"""The operation `qkv_rope_cache`: the packed projection [q | k | v] gets its bias, q and k are turned, k and v go into the KV cache.

qkv is (tokens, (heads + 2 kv_heads) head_dim), a row for each token, its heads of q first, then of k, then of v. The cache is (batch,
kv_heads, max_seq, head_dim) or paged, (pages, kv_heads, page_size, head_dim), as labkernels.kvcache.layout describes it: token i goes to
slots[i] = page * page_size + offset, and nowhere if that is negative. No two tokens may have the same slot. The cache is changed in place;
the results are q, (1, tokens, heads, head_dim) here, so that all have four axes, and both caches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from labkernels.elementwise.peers import compiled, needs_gpu
from labkernels.elementwise.rows import dtype_and_device_problem
from labkernels.operation import Op, Peer, Tolerance, Variant, dtype_name
from labkernels.rope import rope_op
from labkernels.rope.rope_op import angles_problem, cos_sin, turned

DTYPES = rope_op.DTYPES


class Cache(NamedTuple):
    """Both halves of a KV cache, to be changed in place; and for who judges that, what they held before, and whether tokens are skipped."""

    k: torch.Tensor
    v: torch.Tensor
    before: tuple[torch.Tensor, torch.Tensor] | None = None
    skips: bool = False


def _parts(qkv, cache, bias):
    """(tokens, heads, head_dim) of each of q, k and v, with their bias."""
    kv_heads, head_dim = cache[0].shape[1], cache[0].shape[3]
    by_head = (qkv if bias is None else qkv + bias).unflatten(1, (-1, head_dim))
    return by_head.split([by_head.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)


def _computed(qkv, cache, angles, positions, bias, interleaved):
    q, k, v = _parts(qkv, cache, bias)
    cos, sin = (each.unsqueeze(1).to(qkv.dtype) for each in cos_sin(angles, positions, len(qkv)))
    return turned(q, cos, sin, interleaved), turned(k, cos, sin, interleaved), v


def reference(
    qkv: torch.Tensor, cache: Cache, angles: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, bias: torch.Tensor | None = None,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """q turned and new caches, in the precision of qkv; the cache given stays as it is."""
    q, k, v = _computed(qkv, cache, angles, positions, bias, interleaved)
    caches = [half.to(qkv.dtype).clone() for half in getattr(cache, "before", None) or cache[:2]]
    kept = slots >= 0
    pages, offsets = slots[kept] // cache[0].shape[2], slots[kept] % cache[0].shape[2]
    for half, new in zip(caches, (k, v)):
        half[pages, :, offsets] = new[kept]
    return q[None], *caches


def in_place(qkv, cache, angles, positions, slots, bias=None, interleaved=False):
    """With PyTorch's operations, for tokens that are all stored."""
    q, k, v = _computed(qkv, cache, angles, positions, bias, interleaved)
    page_size = cache[0].shape[2]
    pages, offsets, heads = slots // page_size, slots % page_size, torch.arange(cache[0].shape[1], device=qkv.device)
    for half, new in zip(cache, (k, v)):
        half.index_put_((pages[:, None], heads, offsets[:, None]), new)
    return q[None], *cache[:2]


def _in_place_refusal(qkv, cache, **_) -> str | None:
    return needs_gpu(qkv=qkv) or ("PyTorch has no slot for nowhere" if getattr(cache, "skips", False) else None)


def problem(qkv, cache, angles, positions, slots, bias=None, interleaved=False) -> str | None:
    """What is wrong with these inputs, or None."""
    k, v = cache[:2]
    for name, tensor in (("k_cache", k), ("v_cache", v)):
        if tensor.dim() != 4:
            return f"{name} has shape {tuple(tensor.shape)}; it must have four axes, (pages, kv_heads, page_size, head_dim)"
    if k.shape != v.shape:
        return f"k_cache has shape {tuple(k.shape)}, v_cache has {tuple(v.shape)}; both must be equal"
    kv_heads, head_dim = k.shape[1], k.shape[3]
    if qkv.dim() != 2 or qkv.shape[1] % head_dim or qkv.shape[1] // head_dim <= 2 * kv_heads:
        return (
            f"qkv has shape {tuple(qkv.shape)}; it must be (tokens, (heads + 2 kv_heads) head_dim), with at least one head of q "
            f"beside {kv_heads} of k and of v, of head_dim {head_dim}"
        )
    for name, tensor, dtypes in (("positions", positions, (torch.int32, torch.int64)), ("slots", slots, (torch.int64,))):
        if tensor.shape != qkv.shape[:1]:
            return f"{name} has shape {tuple(tensor.shape)}; it must be one number a token, ({len(qkv)},)"
        if tensor.dtype not in dtypes:
            return f"{name} is {dtype_name(tensor.dtype)}; it must be {' or '.join(map(dtype_name, dtypes))}"
        if tensor.device != qkv.device:
            return f"{name} is on {tensor.device}, qkv is on {qkv.device}; both must be on one device"
    if bias is not None and bias.shape != qkv.shape[1:]:
        return f"bias has shape {tuple(bias.shape)}; it must be one number a column of qkv, ({qkv.shape[1]},)"
    if k.stride(3) != 1 or v.stride(3) != 1:
        return "k_cache and v_cache must have neighbours along head_dim next to each other in memory"
    return dtype_and_device_problem({"qkv": qkv, "k_cache": k, "v_cache": v, "bias": bias}, DTYPES) or angles_problem(angles, head_dim, qkv.device)


def make_inputs(
    generator, device, dtype, *, tokens: int, heads: int, kv_heads: int, head_dim: int, pages: int, page_size: int, rotary_dim: int | None = None,
    interleaved: bool = False, bias: bool = False, skip: int = 0, table: bool = False, layout: str = "contiguous",
) -> dict:  # fmt: skip
    """A normally distributed projection, bias and cache. Tokens go to pages out of order, side by side in each; each
    `skip`-th one nowhere."""
    cols = (heads + 2 * kv_heads) * head_dim

    def normal(*shape):
        return torch.randn(shape, generator=generator, device=generator.device).to(device, dtype)

    k, v = (normal(pages, kv_heads, page_size, head_dim) for _ in range(2))
    cache = Cache(k, v, (k.clone(), v.clone()), skips=bool(skip))
    given = rope_op.make_inputs(generator, device, dtype, batch=1, heads=1, kv_heads=1, seq=1, head_dim=head_dim, rotary_dim=rotary_dim, table=table)
    token = torch.arange(tokens, device=device)
    slots = (token // page_size * 7 + 1) % pages * page_size + token % page_size if pages % 7 else token
    if skip:
        slots = torch.where(token % skip == skip - 1, -1, slots)
    qkv = normal(tokens, 2 * cols if layout == "apart" else cols)[:, :cols]
    positions = (37 * token + 5) % 2048
    inputs = {"qkv": qkv, "cache": cache, "angles": given["angles"], "positions": positions, "slots": slots}
    return {**inputs, "bias": normal(cols) if bias else None, "interleaved": interleaved}


def bytes_moved(dtype, *, tokens, heads, kv_heads, head_dim, **_) -> int:
    """The projection read once, as much written."""
    return 2 * tokens * (heads + 2 * kv_heads) * head_dim * dtype.itemsize


def hints(failure) -> str | None:
    """Name the classic mistake whose result this is."""
    from labkernels.lab.compare import doubled

    given = doubled(failure.inputs)
    which = OP.results.index(failure.result)
    q, k, v = _parts(given["qkv"], given["cache"], given["bias"])
    if which == 0:
        mistakes = [("q before it is turned", q[None])]
        if given["bias"] is not None:
            mistakes.append(("what comes out without the bias", reference(**{**given, "bias": None})[0]))
        return failure.matching(mistakes)
    return None


def shape(tokens: int, **other) -> dict:
    return {"tokens": tokens, "heads": 2, "kv_heads": 1, "head_dim": 64, "pages": 3, "page_size": 16, **other}


def complete_shape(dtype, *, tokens, heads=32, kv_heads=8, head_dim=128, page_size=64, bias=False, **other) -> dict:
    pages = max(16, 2 * tokens // page_size)
    sizes = {"tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    return {**sizes, "pages": pages, "page_size": page_size, "bias": bias, **other}


def load_variants() -> Mapping[str, Variant]:
    from labkernels.rope.qkv_rope_cache_variants import VARIANTS

    return VARIANTS


def _trivial(qkv, cache, **_):
    if len(qkv):
        return None
    _, kv_heads, _, head_dim = cache[0].shape
    return qkv.new_empty(1, 0, qkv.shape[1] // head_dim - 2 * kv_heads, head_dim), *cache[:2]


OP = Op(
    name="qkv_rope_cache",
    summary="bias, RoPE and the write into the KV cache of a packed projection, in one launch",
    load_variants=load_variants,
    reference=reference,
    native=reference,
    problem=problem,
    trivial=_trivial,
    make_inputs=make_inputs,
    axes=("page", "head", "row", "dim"),
    results=("q", "k_cache", "v_cache"),
    dtypes=DTYPES,
    small_shapes=(shape(1), shape(5, bias=True, skip=2), shape(3, interleaved=True, rotary_dim=32, table=True, layout="apart")),
    check_shapes=(
        shape(1, bias=True),
        shape(130, heads=3, skip=3, pages=9),
        shape(7, heads=4, kv_heads=2, head_dim=128, bias=True, skip=2, page_size=5),
        shape(6, interleaved=True, table=True, layout="apart", bias=True),
        shape(5, head_dim=80, rotary_dim=32, heads=5, bias=True),
        shape(4, head_dim=6, rotary_dim=4, interleaved=True),
    ),
    large_shapes=(complete_shape(None, tokens=1000, bias=True, skip=7), complete_shape(None, tokens=77, heads=9, kv_heads=3, page_size=16)),
    tolerance=lambda dtype, **_: Tolerance(relative=4 * torch.finfo(torch.float32).eps, absolute=1e-5),
    hints=hints,
    complete_shape=complete_shape,
    sweep={"dtype": ["bfloat16"], "tokens": [1, 32, 1024, 16_384]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "tokens": [1, 256, 16_384]},
        {"dtype": ["bfloat16"], "bias": [True], "tokens": [16_384]},
    ),
    flops=lambda *, tokens, heads, kv_heads, head_dim, **_: 4 * tokens * (heads + 2 * kv_heads) * head_dim,
    bytes_moved=bytes_moved,
    peers={"torch": Peer("torch", in_place, _in_place_refusal), "torch.compile": compiled(in_place, _in_place_refusal)},
)
