"""Attention of a chunk of a prompt against a cache: the cache's tokens are packed, then it is attention over packed sequences."""

from __future__ import annotations

import struct
from pathlib import Path

import torch

from labkernels.attention import attention_varlen
from labkernels.cuda.variants import ceil_div, kernel
from labkernels.errors import ArgumentError
from labkernels.kvcache.decode_attention_op import problem
from labkernels.kvcache.launch import capacity
from labkernels.kvcache.layout import LARGEST
from labkernels.kvcache.tensor_cores import stored_type

FILE = Path(__file__).parent / "gather.cu"
MARGIN = 512  # rows, as in gather.cu


def prefill(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None, cu_seqlens_q=None, max_seqlen_q=None, max_length=None):
    """As labkernels.kvcache.prefill_attention."""
    packed_queries = cu_seqlens_q is not None
    batch = lengths.shape[0] if lengths.dim() == 1 else 0
    if q.dim() != (3 if packed_queries else 4):
        wanted = "(total_q, heads, head_dim), as cu_seqlens_q is given" if packed_queries else "(batch, heads, queries, head_dim)"
        raise ArgumentError(f"prefill_attention: q has shape {tuple(q.shape)}; it must have the axes {wanted}")
    like_q = q[:1].expand(batch, *q.shape[1:]) if packed_queries and q.shape[0] else q.new_empty(batch, *q.shape[1:]) if packed_queries else q
    if wrong := problem(like_q, k, v, lengths, block_table, scale, k_scale=k_scale, v_scale=v_scale):
        raise ArgumentError(f"prefill_attention: {wrong}")
    longest = capacity(k, block_table) if max_length is None else min(max_length, capacity(k, block_table))
    if q.numel() == 0 or longest == 0:
        return q.new_zeros(q.shape)
    if not packed_queries:
        heads, max_seqlen_q = q.shape[1], q.shape[2]
        rows = q.transpose(1, 2).reshape(batch * max_seqlen_q, heads, q.shape[3])
        cu_seqlens_q = torch.arange(0, (batch + 1) * max_seqlen_q, max_seqlen_q, dtype=torch.int32, device=q.device)
    else:
        rows = q
    ends = torch.zeros(batch + 1, dtype=torch.int32, device=q.device)
    torch.cumsum(lengths, 0, dtype=torch.int32, out=ends[1:])
    keys, values = (packed(cache, scales, ends, block_table, longest, q.dtype) for cache, scales in ((k, k_scale), (v, v_scale)))
    out = attention_varlen(rows, keys, values, cu_seqlens_q, ends, True, scale, max_seqlen_q=max_seqlen_q)
    return out if packed_queries else out.view(batch, max_seqlen_q, heads, -1).transpose(1, 2)


def packed(cache, scales, ends, block_table, longest: int, dtype: torch.dtype) -> torch.Tensor:
    """The cache's tokens, sequence after sequence, in `dtype`: (tokens, kv_heads, head_dim). On a GPU, where nobody knows how many there are,
    there is room for `longest` in each, and zeros follow the last."""
    batch, (kv_heads, page_size, head_dim) = len(ends) - 1, cache.shape[1:]
    room = int(ends[-1]) if ends.device.type == "cpu" else batch * longest + MARGIN
    found = torch.empty((kv_heads, room, head_dim), dtype=dtype, device=cache.device)
    if found.numel():
        scale_strides = scales.stride()[:2] if cache.dtype in LARGEST else (0, 0)
        table_stride = 0 if block_table is None else block_table.stride(0)
        sizes = struct.pack("<5q6i", *cache.stride()[:3], *scale_strides, batch, kv_heads, head_dim, page_size, table_stride, room)
        run = kernel(FILE, "cache_gather", dtype, stored_type(cache.dtype))
        run((ceil_div(max(longest, MARGIN), 8), kv_heads, batch + 1), 256, (cache, scales, ends, block_table, found, sizes))
    return found.transpose(0, 1)
