"""How each version of `rope` is launched, and on what it can run.

Each returns new tensors laid out in memory as q and k are, where those are dense.
"""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel
from labkernels.operation import Variant
from labkernels.rope.launch import THREADS, block_of, head_strides, heads_each, pairs_of, position_layout, vectors_fit

FOLDER = Path(__file__).parent


def v1_naive(q, k, angles, positions=None, interleaved=False, inverse=False) -> tuple[torch.Tensor, torch.Tensor]:
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    pairs, rows = pairs_of(angles)
    batch, heads, seq, head_dim = q.shape
    units = batch * seq * (heads + k.shape[1]) * (head_dim - pairs)
    sizes = (batch, seq, heads, k.shape[1], pairs, head_dim, rows, -1.0 if inverse else 1.0, interleaved)
    args = (q, k, q_out, k_out, angles.contiguous(), positions, *sizes, *map(head_strides, (q, k, q_out, k_out)), position_layout(positions))
    kernel(FOLDER / "v1_naive.cu", "rope_naive", q.dtype)(ceil_div(units, THREADS), THREADS, args)
    return q_out, k_out


def v2_vectors(q, k, angles, positions=None, interleaved=False, inverse=False) -> tuple[torch.Tensor, torch.Tensor]:
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    pairs, rows = pairs_of(angles)
    batch, heads, seq, head_dim = q.shape
    width = 16 // q.element_size()
    parts, all_heads = pairs // width, heads + k.shape[1]
    each = heads_each(batch * seq * all_heads * parts, q)
    block, slices = block_of(parts, all_heads, each, tokens_first=q.stride(1) > q.stride(2))
    sizes = (batch, seq, heads, k.shape[1], pairs, head_dim, rows, -1.0 if inverse else 1.0)
    args = (q, k, q_out, k_out, angles.contiguous(), positions, *sizes, *map(head_strides, (q, k, q_out, k_out)), position_layout(positions))
    rope = kernel(FOLDER / "v2_vectors.cu", "rope_vectors", q.dtype, width, each, str(bool(interleaved)).lower())
    rope((ceil_div(batch * seq, block[2]), slices), block, args)
    return q_out, k_out


def _accepts_vectors(q, k, angles, positions=None, interleaved=False, inverse=False) -> str | None:
    width, pairs = 16 // q.element_size(), pairs_of(angles)[0]
    if angles.data_ptr() % 16 or not vectors_fit(width, pairs, q.shape[3], q, k):
        return f"takes heads, and halves of what is turned, of a multiple of {width} neighbours in memory, each on a multiple of 16 bytes"
    if pairs // width > THREADS:
        return f"takes at most {THREADS * width} pairs"
    return None


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "one pair of one head a thread", FOLDER / "v1_naive.cu"),
        Variant("v2_vectors", v2_vectors, "16 bytes a load, the same sines for several heads", FOLDER / "v2_vectors.cu", _accepts_vectors),
    )
}
