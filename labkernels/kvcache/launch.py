"""What the launchers of the KV cache share: the kernels' `Problem`, and how inputs are seen."""

from __future__ import annotations

import math
import struct

import torch

LOG2_OF_E = 1.4426950408889634


def as_rows(q: torch.Tensor) -> torch.Tensor:
    """q (batch, heads, queries, head_dim), of which (batch, heads, head_dim) has one query."""
    return q if q.dim() == 4 else q[:, :, None]


def capacity(k: torch.Tensor, block_table: torch.Tensor | None) -> int:
    """How many tokens a sequence may have."""
    return k.shape[2] if block_table is None else block_table.shape[1] * k.shape[2]


def problem_bytes(q, k, v, block_table, scale, k_scale, v_scale) -> bytes:
    """The kernels' `Problem` (cache.cuh); q (batch, heads, queries, head_dim)."""
    batch, heads, queries, head_dim = q.shape
    kv_heads, page_size = k.shape[1:3]
    shift = page_size.bit_length() - 1 if page_size & (page_size - 1) == 0 else -1
    scales = [stride for tensor in (k_scale, v_scale) for stride in (tensor.stride()[:2] if tensor is not None else (0, 0))]
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *scales)
    sizes = (batch, kv_heads, heads // kv_heads, queries, head_dim, page_size, shift, 0 if block_table is None else block_table.stride(0))
    return struct.pack("<13q8if4x", *strides, *sizes, (1 / math.sqrt(head_dim) if scale is None else scale) * LOG2_OF_E)
