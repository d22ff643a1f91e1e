"""Attention against a cache by its definition, in plain PyTorch, and as PyTorch itself would do it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from labkernels.kvcache.launch import as_rows, capacity
from labkernels.kvcache.layout import dequantise, gather


def seen(lengths: torch.Tensor, queries: int, tokens: int) -> torch.Tensor:
    """(batch, 1, queries, tokens), true where the query sees the token: the last query stands at the sequence's last token."""
    position = lengths.long()[:, None] - queries + torch.arange(queries, device=lengths.device)
    return (torch.arange(tokens, device=lengths.device) <= position[..., None])[:, None]


def _in_order(q, k, v, lengths, block_table, k_scale, v_scale):
    """k and v as (batch, kv_heads, tokens, head_dim) of q's dtype, zeros beyond each sequence's length."""
    tokens = capacity(k, block_table)
    inside = (torch.arange(tokens, device=k.device) < lengths[:, None])[:, None, :, None]
    for cache, scale in ((k, k_scale), (v, v_scale)):
        values = dequantise(gather(cache, block_table), None if scale is None else gather(scale, block_table), q.dtype)
        yield torch.where(inside, values, 0.0)


def reference(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None) -> torch.Tensor:
    """softmax(q k^T * scale) v over the tokens that each query sees, in the precision of q; zeros where it sees none."""
    rows = as_rows(q)
    keys, values = _in_order(rows, k, v, lengths, block_table, k_scale, v_scale)
    group = rows.shape[1] // k.shape[1]
    scores = rows @ keys.repeat_interleave(group, 1).transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    hidden = ~seen(lengths, rows.shape[2], keys.shape[2])
    weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1).masked_fill(hidden, 0.0)
    return (weights @ values.repeat_interleave(group, 1)).reshape(q.shape)


def native(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None) -> torch.Tensor:
    """`scaled_dot_product_attention` behind whatever must be done first: pages gathered, elements made q's dtype, a mask of lengths."""
    rows = as_rows(q)
    keys, values = _in_order(rows, k, v, lengths, block_table, k_scale, v_scale)
    full = rows.shape[2] == 1 and bool((lengths == keys.shape[2]).all())
    mask = None if full else seen(lengths, rows.shape[2], keys.shape[2])
    out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale, enable_gqa=rows.shape[1] != k.shape[1])
    return (out if full else out.masked_fill(~mask.any(-1, keepdim=True), 0.0)).reshape(q.shape)
