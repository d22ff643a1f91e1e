"""How each version of `qkv_rope_cache` is launched, and on what it can run. Each changes the cache in place and returns (q, k, v) of it.

v1 and v2 write caches of qkv's dtype, v3 those of 8 bits.
"""

from __future__ import annotations

import struct
from pathlib import Path

import torch

from labkernels.cuda.settled import wrote
from labkernels.cuda.variants import ceil_div, kernel
from labkernels.kvcache.layout import LARGEST
from labkernels.kvcache.tensor_cores import stored_type
from labkernels.operation import Variant, dtype_name
from labkernels.rope.launch import THREADS, block_of, heads_each, pairs_of, position_layout, vectors_fit

FOLDER = Path(__file__).parent
HEADS, BLOCK = 3, 128  # of a thread and threads of a block of v2 and v3: measured on an H200, 1 to 8 heads and 128 to 512 threads


def v1_naive(qkv, cache, angles, positions, slots, bias=None, interleaved=False, k_scale=None, v_scale=None):
    q, pointers, sizes, rest = _arguments(qkv, cache, angles, positions, slots, bias)
    tokens, heads, kv_heads, pairs, head_dim, _ = sizes
    fused = kernel(FOLDER / "v1_qkv_cache_naive.cu", "qkv_cache_naive", qkv.dtype)
    fused(ceil_div(tokens * (heads + 2 * kv_heads) * (head_dim - pairs), THREADS), THREADS, (*pointers, *sizes, interleaved, *rest))
    wrote(*cache[:2])
    return q[None], *cache[:2]


def v2_vectors(qkv, cache, angles, positions, slots, bias=None, interleaved=False, k_scale=None, v_scale=None):
    q, pointers, sizes, rest = _arguments(qkv, cache, angles, positions, slots, bias)
    tokens, heads, kv_heads, pairs, _, _ = sizes
    width = 16 // qkv.element_size()
    parts, all_heads = pairs // width, heads + 2 * kv_heads
    each = heads_each(tokens * all_heads * parts, qkv, HEADS)
    block, slices = block_of(parts, all_heads, each, threads=BLOCK)
    fused = kernel(FOLDER / "v2_qkv_cache_vectors.cu", "qkv_cache_vectors", qkv.dtype, width, each, str(bool(interleaved)).lower())
    fused((ceil_div(tokens, block[2]), slices), block, (*pointers, *sizes, *rest))
    wrote(*cache[:2])
    return q[None], *cache[:2]


def v3_bytes(qkv, cache, angles, positions, slots, bias=None, interleaved=False, k_scale=None, v_scale=None):
    scales = (k_scale, v_scale) if k_scale is not None else cache[2:4]
    return bytes_written(qkv, (*cache[:2], *scales), angles, positions, slots, bias, interleaved)[None], *cache[:2]


def bytes_written(qkv, cache, angles, positions, slots, bias=None, interleaved=False, out=None, early=False) -> torch.Tensor:
    """v3: q turned (tokens, heads, head_dim), in `out` if given, contiguous; cache is (k, v, k_scale, v_scale). Positions of None are 0, 1, 2 ...
    `early`: launched without waiting for the kernel before."""
    q, pointers, sizes, rest = _arguments(qkv, cache, angles, positions, slots, bias, out)
    tokens, heads, kv_heads, _, head_dim, _ = sizes
    width = 16 // qkv.element_size()
    lanes, all_heads = _lanes(head_dim, width), heads + 2 * kv_heads
    each = heads_each(tokens * all_heads * lanes, qkv, HEADS)
    types = qkv.dtype, stored_type(cache[0].dtype)
    fused = kernel(FOLDER / "v3_qkv_cache_bytes.cu", "qkv_cache_bytes", *types, width, lanes, each, str(bool(interleaved)).lower())
    scales = [struct.pack("<2q", *scale.stride()[:2]) for scale in cache[2:4]]
    fused(ceil_div(tokens * ceil_div(all_heads, each) * lanes, BLOCK), BLOCK, (*pointers, *sizes, *rest, *cache[2:4], *scales), early=early)
    wrote(*cache[:4], out)
    return q


def _lanes(head_dim: int, width: int) -> int:
    """Of v3 for a head: a power of two."""
    return 1 << (ceil_div(head_dim, 2 * width) - 1).bit_length()


def _arguments(qkv, cache, angles, positions, slots, bias, out=None):
    """q, to be filled; the pointers, the sizes and the layouts that all kernels take."""
    _, kv_heads, page_size, head_dim = cache[0].shape
    tokens, heads = qkv.shape[0], qkv.shape[1] // head_dim - 2 * kv_heads
    pairs, rows = pairs_of(angles)
    q = torch.empty((tokens, heads, head_dim), dtype=qkv.dtype, device=qkv.device) if out is None else out
    pointers = (qkv, None if bias is None else bias.contiguous(), q, *cache[:2], angles.contiguous(), positions, slots.contiguous())
    layouts = [struct.pack("<3q2i", *half.stride()[:3], page_size, 0) for half in cache[:2]]
    rest = (qkv.stride(0), cache[0].shape[0] * page_size, *layouts, position_layout(positions))
    return q, pointers, (tokens, heads, kv_heads, pairs, head_dim, rows), rest


def _accepts_naive(qkv, cache, angles, positions, slots, bias=None, interleaved=False, k_scale=None, v_scale=None) -> str | None:
    if qkv.stride(1) != 1:
        return "takes rows whose elements are neighbours in memory"
    return None if cache[0].dtype == qkv.dtype else f"takes a cache of qkv's dtype, not {dtype_name(cache[0].dtype)}"


def _accepts_vectors(qkv, cache, angles, positions, slots, bias=None, interleaved=False, k_scale=None, v_scale=None) -> str | None:
    width, pairs = 16 // qkv.element_size(), pairs_of(angles)[0]
    if cache[0].dtype != qkv.dtype:
        return f"takes a cache of qkv's dtype, not {dtype_name(cache[0].dtype)}"
    if not _on_16_bytes(angles, bias) or not vectors_fit(width, pairs, cache[0].shape[3], qkv, *cache[:2]):
        return f"takes heads, and halves of what is turned, of a multiple of {width} neighbours in memory, each on a multiple of 16 bytes"
    return None if pairs // width <= THREADS else f"takes at most {THREADS * width} pairs"


def _accepts_bytes(qkv, cache, angles, positions, slots, bias=None, interleaved=False, k_scale=None, v_scale=None) -> str | None:
    width, pairs, head_dim = 16 // qkv.element_size(), pairs_of(angles)[0], cache[0].shape[3]
    if cache[0].dtype not in LARGEST:
        return f"is for caches of {' and '.join(map(dtype_name, LARGEST))}"
    if _lanes(head_dim, width) > 32:
        return f"takes a head_dim of at most {64 * width}"
    if cache[0].shape[0] * cache[0].shape[2] >= 1 << 31:
        return "takes a cache of fewer than 2^31 slots"
    fits = head_dim % (2 * width) == 0 and vectors_fit(width, pairs, head_dim, qkv) and vectors_fit(width, pairs, head_dim, *cache[:2])
    if not fits or not _on_16_bytes(angles, bias):
        return (
            f"takes heads, and what is turned of them, of a multiple of {2 * width} neighbours in memory, each on a multiple of 16 bytes in qkv "
            f"and {width} in the cache"
        )
    return None


def _on_16_bytes(*tensors: torch.Tensor | None) -> bool:
    return all(tensor is None or tensor.data_ptr() % 16 == 0 for tensor in tensors)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "one pair of one head a thread", FOLDER / "v1_qkv_cache_naive.cu", _accepts_naive),
        Variant("v2_vectors", v2_vectors, "16 bytes a load, the same sines for several heads", FOLDER / "v2_qkv_cache_vectors.cu", _accepts_vectors),
        Variant("v3_bytes", v3_bytes, "a cache of 8 bits: the largest of a head by shuffles", FOLDER / "v3_qkv_cache_bytes.cu", _accepts_bytes),
    )
}
