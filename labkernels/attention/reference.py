"""Attention by its definition, in plain PyTorch: every other implementation is compared with this one in float64."""

from __future__ import annotations

import math

import torch


def visible(seq_len: int, kv_len: int, device) -> torch.Tensor:
    """The causal mask, bottom right: (seq_len, kv_len), true where the query may see the key."""
    return torch.ones(seq_len, kv_len, dtype=torch.bool, device=device).tril(kv_len - seq_len)


def reference(q, k, v, causal=False, scale=None) -> torch.Tensor:
    """softmax(q k^T * scale) v, in the precision of its inputs. Shapes as in `labkernels.attention.attention`."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)  # (batch, heads, kv_len, head_dim)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = q @ k.transpose(-1, -2) * scale  # (batch, heads, seq_len, kv_len)
    if causal:
        scores = scores.masked_fill(~visible(q.shape[2], k.shape[2], q.device), -torch.inf)
    return torch.softmax(scores, dim=-1) @ v
