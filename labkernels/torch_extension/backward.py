"""Which kernel computes attention's gradients: the fastest that takes the inputs, or else PyTorch by the formulas."""

from __future__ import annotations

import math

import torch

from labkernels.attention import hopper as hopper_attention
from labkernels.attention.reference import scores
from labkernels.attention_backward import hopper

MAX_HEAD_DIM = 128  # of v3_hopper.cu: more does not fit in shared memory


def gradients(grad, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None) -> tuple[torch.Tensor, ...]:
    """Gradients of q, k and v, contiguous and of their dtypes, from that of attention's result. Deterministic where PyTorch is told to be."""
    if not q.numel() or not k.shape[2]:
        return tuple(torch.zeros(tensor.shape, dtype=q.dtype, device=q.device) for tensor in (q, k, v))
    if refusal(grad, q, k, v, out) is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
        return hopper.backward(grad, q, k, v, out, lse, causal, scale, window=window, mask=mask, deterministic=deterministic)
    return by_formula(grad, q, k, v, out, lse, causal, scale, window=window, mask=mask)


def refusal(grad, q, k, v, out) -> str | None:
    """Why the Hopper kernel cannot take these, or None."""
    if q.shape[3] > MAX_HEAD_DIM:
        return f"takes a head_dim of at most {MAX_HEAD_DIM}"
    return hopper_attention.accepts(q, k, v) or hopper_attention.accepts(grad, out, out)


def by_formula(grad, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None) -> tuple[torch.Tensor, ...]:
    """The gradients from whole matrices of probabilities P = exp(scores - lse), in float32:
    dV = P^T dO;  dS = P * (dO V^T - rowsum(dO * O));  dQ = dS K * scale;  dK = dS^T Q * scale."""
    (batch, heads, _, head_dim), kv_heads = q.shape, k.shape[1]
    group, scale = heads // kv_heads, 1 / math.sqrt(head_dim) if scale is None else scale
    wide_q, wide_k, wide_v, wide_grad = (tensor.float() for tensor in (q, k, v, grad))
    found = scores(wide_q, wide_k, causal, scale, window=window, mask=mask)
    unseen = lse.eq(-torch.inf)[..., None]
    p = torch.exp(found - lse[..., None]).masked_fill(unseen, 0.0)
    delta = (wide_grad * out.float()).sum(-1, keepdim=True)
    ds = p * (wide_grad @ wide_v.repeat_interleave(group, dim=1).transpose(-1, -2) - delta)

    def of_group(tensor):  # each key head serves `group` query heads
        return tensor.reshape(batch, kv_heads, group, *tensor.shape[2:]).sum(2)

    dq = ds @ wide_k.repeat_interleave(group, dim=1) * scale
    dk, dv = of_group(ds.transpose(-1, -2) @ wide_q) * scale, of_group(p.transpose(-1, -2) @ wide_grad)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)
