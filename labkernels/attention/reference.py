"""Attention by its definition, in plain PyTorch: every other implementation is compared with this one in float64."""

from __future__ import annotations

import math

import torch


def visible(seq_len: int, kv_len: int, device, causal: bool = True, window: tuple[int | None, int | None] | None = None) -> torch.Tensor:
    """(seq_len, kv_len), true where the query may see the key. Query i stands at key p = i + kv_len - seq_len (aligned bottom right):
    `causal` shows it the keys up to p, `window` = (left, right) the keys p - left to p + right."""
    left, right = window or (None, None)
    mask = torch.ones(seq_len, kv_len, dtype=torch.bool, device=device)
    if causal:
        mask = mask.tril(kv_len - seq_len)
    if left is not None:
        mask = mask.triu(max(kv_len - seq_len - left, -seq_len))
    if right is not None:
        mask = mask.tril(min(kv_len - seq_len + right, kv_len))
    return mask


def scores(q, k, causal=False, scale=None, *, window=None, mask=None) -> torch.Tensor:
    """What the softmax is taken of, (batch, heads, seq_len, kv_len): q k^T * scale, plus the mask if it is additive; -inf where hidden."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    result = q @ k.transpose(-1, -2) * scale
    if mask is not None and mask.dtype != torch.bool:
        result = result + mask
    elif mask is not None:
        result = result.masked_fill(~mask, -torch.inf)
    if causal or window is not None:
        result = result.masked_fill(~visible(*result.shape[-2:], q.device, causal, window), -torch.inf)
    return result


def weighted(scores: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(scores) v; zeros for a query all of whose scores are -inf. v has as many heads as the scores, or fewer (grouped)."""
    nothing_seen = scores.eq(-torch.inf).all(dim=-1, keepdim=True)
    # In a row of -inf the softmax is NaN, and so is its gradient, whatever is filled in behind it.
    weights = torch.softmax(scores.masked_fill(nothing_seen, 0.0), dim=-1).masked_fill(nothing_seen, 0.0)
    return weights @ v.repeat_interleave(scores.shape[1] // v.shape[1], dim=1)


def reference(q, k, v, causal=False, scale=None, *, window=None, mask=None, return_lse=False):
    """softmax(q k^T * scale + mask) v, in the precision of its inputs. Arguments as in `labkernels.attention.attention`."""
    found = scores(q, k, causal, scale, window=window, mask=mask)
    out = weighted(found, v)
    return (out, torch.logsumexp(found, dim=-1)) if return_lse else out
