"""How each version of `qkv_rope_cache` is launched, and on what it can run. Each changes the cache in place and returns (q, k, v) of it."""

from __future__ import annotations

import struct
from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel
from labkernels.operation import Variant
from labkernels.rope.launch import THREADS, block_of, heads_each, pairs_of, position_layout, vectors_fit

FOLDER = Path(__file__).parent
HEADS, BLOCK = 3, 128  # of a thread and threads of a block of v2: measured on an H200, 1 to 8 heads and 128 to 512 threads


def v1_naive(qkv, cache, angles, positions, slots, bias=None, interleaved=False):
    q, pointers, sizes, rest = _arguments(qkv, cache, angles, positions, slots, bias)
    tokens, heads, kv_heads, pairs, head_dim, _ = sizes
    fused = kernel(FOLDER / "v1_qkv_cache_naive.cu", "qkv_cache_naive", qkv.dtype)
    fused(ceil_div(tokens * (heads + 2 * kv_heads) * (head_dim - pairs), THREADS), THREADS, (*pointers, *sizes, interleaved, *rest))
    return q[None], *cache[:2]


def v2_vectors(qkv, cache, angles, positions, slots, bias=None, interleaved=False):
    q, pointers, sizes, rest = _arguments(qkv, cache, angles, positions, slots, bias)
    tokens, heads, kv_heads, pairs, _, _ = sizes
    width = 16 // qkv.element_size()
    parts, all_heads = pairs // width, heads + 2 * kv_heads
    each = heads_each(tokens * all_heads * parts, qkv, HEADS)
    block, slices = block_of(parts, all_heads, each, threads=BLOCK)
    fused = kernel(FOLDER / "v2_qkv_cache_vectors.cu", "qkv_cache_vectors", qkv.dtype, width, each, str(bool(interleaved)).lower())
    fused((ceil_div(tokens, block[2]), slices), block, (*pointers, *sizes, *rest))
    return q[None], *cache[:2]


def _arguments(qkv, cache, angles, positions, slots, bias):
    """q, to be filled; the pointers, the sizes and the layouts that both kernels take."""
    _, kv_heads, page_size, head_dim = cache[0].shape
    tokens, heads = qkv.shape[0], qkv.shape[1] // head_dim - 2 * kv_heads
    pairs, rows = pairs_of(angles)
    q = torch.empty((tokens, heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    pointers = (qkv, None if bias is None else bias.contiguous(), q, *cache[:2], angles.contiguous(), positions, slots.contiguous())
    layouts = [struct.pack("<3q2i", *half.stride()[:3], page_size, 0) for half in cache[:2]]
    rest = (qkv.stride(0), cache[0].shape[0] * page_size, *layouts, position_layout(positions))
    return q, pointers, (tokens, heads, kv_heads, pairs, head_dim, rows), rest


def _accepts_naive(qkv, cache, angles, positions, slots, bias=None, interleaved=False) -> str | None:
    return None if qkv.stride(1) == 1 else "takes rows whose elements are neighbours in memory"


def _accepts_vectors(qkv, cache, angles, positions, slots, bias=None, interleaved=False) -> str | None:
    width, pairs = 16 // qkv.element_size(), pairs_of(angles)[0]
    aligned = angles.data_ptr() % 16 == 0 and (bias is None or bias.data_ptr() % 16 == 0)
    if not aligned or not vectors_fit(width, pairs, cache[0].shape[3], qkv, *cache[:2]):
        return f"takes heads, and halves of what is turned, of a multiple of {width} neighbours in memory, each on a multiple of 16 bytes"
    return None if pairs // width <= THREADS else f"takes at most {THREADS * width} pairs"


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "one pair of one head a thread", FOLDER / "v1_qkv_cache_naive.cu", _accepts_naive),
        Variant("v2_vectors", v2_vectors, "16 bytes a load, the same sines for several heads", FOLDER / "v2_qkv_cache_vectors.cu", _accepts_vectors),
    )
}
