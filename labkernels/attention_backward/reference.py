"""The gradients of attention by automatic differentiation of its definition, in plain PyTorch."""

from __future__ import annotations

import torch

from labkernels.attention.reference import reference as attention
from labkernels.attention.reference import scores


def reference(grad_out, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None, deterministic=False):
    """(dq, dk, dv), in the precision of the inputs. `out` and `lse` are worked out again, not read."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
        found = attention(*leaves, causal, scale, window=window, mask=mask)
        return torch.autograd.grad(found, leaves, grad_out)


def forward(q, k, v, causal=False, scale=None, *, window=None, mask=None) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse) as the forward pass leaves them: in float64, then rounded to q's dtype and to float32. One head's scores at a time."""
    (batch, heads, seq_len, _), group = q.shape, q.shape[1] // k.shape[1]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if q.is_meta:
        return out, lse
    mask = None if mask is None else mask.expand(batch, heads, seq_len, k.shape[2])
    for b in range(batch):
        for h in range(heads):
            own = q[b, h], k[b, h // group], v[b, h // group]
            query, key, value = (tensor.double()[None, None] for tensor in own)
            head_mask = None if mask is None else mask[b, h][None, None]
            found = scores(query, key, causal, scale, window=window, mask=head_mask)
            lse[b, h] = found.logsumexp(-1)[0, 0]
            weights = torch.exp(found - found.logsumexp(-1, keepdim=True).nan_to_num(neginf=0.0))
            out[b, h] = (weights @ value)[0, 0]
    return out, lse
