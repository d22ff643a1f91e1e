"""The operation `qkv_rope_cache`: the packed projection [q | k | v] gets its bias, q and k are turned, k and v go into the KV cache.

qkv is (tokens, (heads + 2 kv_heads) head_dim), a row for each token, its heads of q first, then of k, then of v. The cache is (batch,
kv_heads, max_seq, head_dim) or paged, (pages, kv_heads, page_size, head_dim), as labkernels.kvcache.layout describes it: token i goes to
slots[i] = page * page_size + offset, and nowhere if that is negative. No two tokens may have the same slot. It is of qkv's dtype, or int8 or fp8
with a scale for each token and head beside it. The cache is changed in place; the results are q, (1, tokens, heads, head_dim) here, so that all have
four axes, and both caches: judged are the numbers that 8 bits stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch

from labkernels.elementwise.peers import compiled, needs_gpu
from labkernels.elementwise.rows import dtype_and_device_problem
from labkernels.kvcache.checks import cache_problem, on_one_device
from labkernels.kvcache.decode_attention_op import STORED
from labkernels.kvcache.layout import LARGEST, dequantise, quantise
from labkernels.operation import Op, Peer, Tolerance, Variant, dtype_name
from labkernels.rope import rope_op
from labkernels.rope.rope_op import angles_problem, cos_sin, turned

DTYPES = rope_op.DTYPES


class Cache(NamedTuple):
    """Both halves of a KV cache, and the scales of one of 8 bits, to be changed in place; and for who judges that, what the halves held before, as
    numbers, and whether tokens are skipped."""

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None
    before: tuple[torch.Tensor, torch.Tensor] | None = None
    skips: bool = False

    @classmethod
    def of(cls, cache, k_scale=None, v_scale=None) -> Cache:
        """From what the public function is given."""
        return cache if isinstance(cache, cls) else cls(*cache, k_scale, v_scale)

    @property
    def scales(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self.k_scale, self.v_scale


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
    interleaved: bool = False, k_scale: torch.Tensor | None = None, v_scale: torch.Tensor | None = None, rounded: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """q turned and new caches, in the precision of qkv; the cache given stays as it is. Of a cache of 8 bits the numbers that it should stand for,
    or, `rounded`, those that it can."""
    cache = Cache.of(cache, k_scale, v_scale)
    q, *new = _computed(qkv, cache, angles, positions, bias, interleaved)
    before = cache.before or [dequantise(half, scale) for half, scale in zip(cache, cache.scales)]
    caches = [half.to(qkv.dtype).clone() for half in before]
    kept = slots >= 0
    pages, offsets = slots[kept] // cache.k.shape[2], slots[kept] % cache.k.shape[2]
    for half, of_half in zip(caches, new):
        numbers = dequantise(*quantise(of_half, cache.k.dtype), qkv.dtype) if rounded and cache.k.dtype in LARGEST else of_half
        half[pages, :, offsets] = numbers[kept]
    return q[None], *caches


def decode(result, qkv, cache, k_scale=None, v_scale=None, **_):
    """The caches as the numbers that they stand for, in qkv's dtype."""
    if not isinstance(result, (tuple, list)) or len(result) != 3:
        return result
    scales = Cache.of(cache, k_scale, v_scale).scales
    narrow = [isinstance(half, torch.Tensor) and half.dtype in LARGEST for half in result[1:]]
    return result[0], *(dequantise(half, scale).to(qkv.dtype) if is_narrow else half for half, scale, is_narrow in zip(result[1:], scales, narrow))


def in_place(qkv, cache, angles, positions, slots, bias=None, interleaved=False, k_scale=None, v_scale=None):
    """With PyTorch's operations, for tokens that are all stored."""
    cache = Cache.of(cache, k_scale, v_scale)
    q, *new = _computed(qkv, cache, angles, positions, bias, interleaved)
    page_size = cache.k.shape[2]
    pages, offsets, heads = slots // page_size, slots % page_size, torch.arange(cache.k.shape[1], device=qkv.device)
    places = pages[:, None], heads, offsets[:, None]
    for half, scale, of_half in zip(cache, cache.scales, new):
        if scale is not None:
            of_half, largest = quantise(of_half, half.dtype)
            scale.index_put_(places, largest)
        bytes_of = torch.uint8 if scale is not None else half.dtype  # fp8 cannot be put, its bytes can
        half.view(bytes_of).index_put_(places, of_half.view(bytes_of))
    return q[None], cache.k, cache.v


def _in_place_refusal(qkv, cache, **_) -> str | None:
    return needs_gpu(qkv=qkv) or ("PyTorch has no slot for nowhere" if getattr(cache, "skips", False) else None)


def problem(qkv, cache, angles, positions, slots, bias=None, interleaved=False, k_scale=None, v_scale=None) -> str | None:
    """What is wrong with these inputs, or None."""
    k, v, *scales = Cache.of(cache, k_scale, v_scale)[:4]
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
    of_qkv_dtype = {"qkv": qkv, "bias": bias}
    if k.dtype in LARGEST or any(scale is not None for scale in scales):
        if wrong := cache_problem(k, v, *scales):
            return f"of the cache, {wrong}"
        if wrong := on_one_device(qkv=qkv, k_cache=k, v_cache=v, k_scale=scales[0], v_scale=scales[1]):
            return wrong
    else:
        of_qkv_dtype |= {"k_cache": k, "v_cache": v}
    return dtype_and_device_problem(of_qkv_dtype, DTYPES) or angles_problem(angles, head_dim, qkv.device)


def make_inputs(
    generator, device, dtype, *, tokens: int, heads: int, kv_heads: int, head_dim: int, pages: int, page_size: int, rotary_dim: int | None = None,
    interleaved: bool = False, bias: bool = False, skip: int = 0, table: bool = False, layout: str = "contiguous", cache: str = "same",
) -> dict:  # fmt: skip
    """A normally distributed projection, bias and cache, "same" of qkv's dtype, "int8" or "fp8". Tokens go to pages out of order, side by side in
    each; each `skip`-th one nowhere."""
    cols = (heads + 2 * kv_heads) * head_dim

    def normal(*shape):
        return torch.randn(shape, generator=generator, device=generator.device).to(device, dtype)

    k, v = (normal(pages, kv_heads, page_size, head_dim) for _ in range(2))
    if STORED[cache] is None:
        made = Cache(k, v, before=(k.clone(), v.clone()), skips=bool(skip))
    else:
        (k, k_scale), (v, v_scale) = (quantise(half, STORED[cache]) for half in (k, v))
        made = Cache(k, v, k_scale, v_scale, (dequantise(k, k_scale), dequantise(v, v_scale)), bool(skip))
    given = rope_op.make_inputs(generator, device, dtype, batch=1, heads=1, kv_heads=1, seq=1, head_dim=head_dim, rotary_dim=rotary_dim, table=table)
    token = torch.arange(tokens, device=device)
    slots = (token // page_size * 7 + 1) % pages * page_size + token % page_size if pages % 7 else token
    if skip:
        slots = torch.where(token % skip == skip - 1, -1, slots)
    qkv = normal(tokens, 2 * cols if layout == "apart" else cols)[:, :cols]
    positions = (37 * token + 5) % 2048
    inputs = {"qkv": qkv, "cache": made, "angles": given["angles"], "positions": positions, "slots": slots}
    return {**inputs, "bias": normal(cols) if bias else None, "interleaved": interleaved}


def bytes_moved(dtype, *, tokens, heads, kv_heads, head_dim, cache="same", **_) -> int:
    """The projection read once, as much written; into a cache of 8 bits a byte a number and a scale a head."""
    of_head = head_dim * dtype.itemsize
    written = of_head if STORED[cache] is None else head_dim + 4
    return tokens * ((2 * heads + 2 * kv_heads) * of_head + 2 * kv_heads * written)


def tolerance(dtype: torch.dtype, *, cache="same", **_) -> Tolerance:
    """Of 8 bits half a step: 1/254 of a head's largest number, 6 or so where there is a bias, in int8; 1/16 of a number of e4m3's three bits."""
    if STORED[cache] is not None:
        return Tolerance(1e-4, 0.03) if cache == "int8" else Tolerance(0.0635, 1e-3)
    return Tolerance(relative=4 * torch.finfo(torch.float32).eps, absolute=1e-5)


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
    native=partial(reference, rounded=True),
    problem=problem,
    trivial=_trivial,
    make_inputs=make_inputs,
    axes=("page", "head", "row", "dim"),
    results=("q", "k_cache", "v_cache"),
    decode=decode,
    dtypes=DTYPES,
    small_shapes=(
        shape(1),
        shape(5, bias=True, skip=2),
        shape(3, interleaved=True, rotary_dim=32, table=True, layout="apart"),
        shape(3, cache="int8", skip=2, table=True),
        shape(2, cache="fp8", head_dim=48, rotary_dim=32, interleaved=True, bias=True),
    ),
    check_shapes=(
        shape(1, bias=True),
        shape(130, heads=3, skip=3, pages=9),
        shape(7, heads=4, kv_heads=2, head_dim=128, bias=True, skip=2, page_size=5),
        shape(6, interleaved=True, table=True, layout="apart", bias=True),
        shape(5, head_dim=80, rotary_dim=32, heads=5, bias=True),
        shape(4, head_dim=6, rotary_dim=4, interleaved=True),
        shape(9, cache="int8", heads=4, kv_heads=2, skip=4, page_size=5, bias=True),
        shape(6, cache="fp8", head_dim=80, heads=5, table=True, layout="apart"),
    ),
    large_shapes=(
        complete_shape(None, tokens=1000, bias=True, skip=7),
        complete_shape(None, tokens=77, heads=9, kv_heads=3, page_size=16),
        complete_shape(None, tokens=3000, head_dim=64, cache="int8", skip=7, table=True),
        complete_shape(None, tokens=777, cache="fp8", bias=True, interleaved=True),
    ),
    tolerance=tolerance,
    hints=hints,
    complete_shape=complete_shape,
    sweep={"dtype": ["bfloat16"], "tokens": [1, 256, 16_384]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "tokens": [1, 256, 16_384]},
        {"dtype": ["bfloat16"], "bias": [True], "tokens": [16_384]},
        {"dtype": ["bfloat16"], "cache": ["int8", "fp8", "same"], "head_dim": [64], "tokens": [1, 16, 64, 8192]},
    ),
    flops=lambda *, tokens, heads, kv_heads, head_dim, **_: 4 * tokens * (heads + 2 * kv_heads) * head_dim,
    bytes_moved=bytes_moved,
    peers={"torch": Peer("torch", in_place, _in_place_refusal), "torch.compile": compiled(in_place, _in_place_refusal)},
)
