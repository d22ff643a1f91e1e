"""The classic mistakes of attention's gradients: what each computes, so that a wrong result can be recognised and named."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from labkernels.attention.reference import scores


def hints(failure) -> str | None:
    """A sentence about the likely mistake behind a wrong gradient, or None."""
    from labkernels.lab.compare import doubled

    inputs = doubled(failure.inputs)
    if failure.reason == "not_finite":
        return "A query that sees no key has an lse of -inf, and exp(-inf - -inf) is nan: its probabilities are 0. Hidden keys have probability 0, too."
    if inputs["q"].shape[1] * inputs["q"].shape[2] * inputs["k"].shape[2] > 1 << 22:
        return None  # trying every mistake on a large case takes longer than the check did
    return failure.matching((what, wrong[failure.result]) for what, wrong in _mistakes(**inputs))


def _mistakes(grad_out, q, k, v, out, lse, causal, scale, window=None, mask=None, deterministic=False) -> Iterator[tuple[str, dict]]:
    """Pairs of `what the gradient is` and the wrong gradients by name."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    options = {"causal": causal, "scale": scale, "window": window, "mask": mask}

    def gradients(grad_scale=scale, with_delta=True, group_sum=True, **changed):
        return by_formula(grad_out, q, k, v, grad_scale=grad_scale, with_delta=with_delta, group_sum=group_sum, **options | changed)

    yield "the gradient without the factor `scale`", gradients(grad_scale=1.0)
    yield "the gradient with the factor `scale` twice", gradients(grad_scale=scale**2)
    yield "the gradient with the factor log2(e) of scores in units of log 2 still in it", gradients(grad_scale=scale * math.log2(math.e))
    yield "the gradient without delta, the sum of grad_out * out over each row, in dS = P * (dP - delta)", gradients(with_delta=False)
    if q.shape[1] != k.shape[1]:
        yield "the gradient of the last query head alone: heads that share keys and values add up", gradients(group_sum=False)
    if causal:
        yield "the gradient without the causal mask", gradients(causal=False)
    if window is not None:
        yield "the gradient without the window", gradients(window=None)
    if mask is not None:
        yield "the gradient without the mask", gradients(mask=None)
    right = gradients()
    yield "the right one with the other sign", {name: -gradient for name, gradient in right.items()}
    if q.shape == k.shape:
        yield "the gradient of k", {name: right["dk"] for name in right}
        yield "the gradient of q", {name: right["dq"] for name in right}


def by_formula(grad_out, q, k, v, causal, scale, window, mask, grad_scale, with_delta, group_sum) -> dict[str, torch.Tensor]:
    """dV = P^T dO;  dS = P * (dO V^T - delta);  dQ = dS K * scale;  dK = dS^T Q * scale: with some part of it changed."""
    group = q.shape[1] // k.shape[1]
    keys, values = (tensor.repeat_interleave(group, dim=1) for tensor in (k, v))
    p = torch.softmax(scores(q, k, causal, scale, window=window, mask=mask), dim=-1).nan_to_num(0.0)
    dp = grad_out @ values.transpose(-1, -2)
    delta = (p * dp).sum(-1, keepdim=True) if with_delta else 0.0
    ds = p * (dp - delta) * grad_scale

    def of_heads(gradient):
        each = gradient.unflatten(1, (-1, group))
        return each.sum(2) if group_sum else each[:, :, -1]

    return {"dq": ds @ keys, "dk": of_heads(ds.transpose(-1, -2) @ q), "dv": of_heads(p.transpose(-1, -2) @ grad_out)}
