"""The classic mistakes of attention kernels: what each computes, so that a wrong result can be recognised and named."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from labkernels.attention.reference import reference, visible

_TILES = (16, 32, 64, 128)


def hints(failure) -> str | None:
    """A sentence about the likely mistake behind a wrong result, or None."""
    inputs = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in failure.inputs.items()}
    if failure.reason == "not_finite":
        return _hint_not_finite(inputs)
    if inputs["q"].shape[1] * inputs["q"].shape[2] * inputs["k"].shape[2] > 1 << 22:
        return None  # trying every mistake on a large case takes longer than the check did
    return failure.matching(_mistakes(**inputs))


def _hint_not_finite(inputs: dict) -> str | None:
    if inputs["causal"]:
        return (
            "Every score of a hidden key must be written, as -inf. And where all scores of a row or tile are -inf, so is their maximum, "
            "and exp(-inf - -inf) is nan: skip it, or subtract 0 there."
        )
    scores = _scores(**inputs)
    if scores.max() > 80:
        return f"Scores reach {scores.max():.0f}, and exp(89) is more than a float32 can hold: subtract each row's maximum first."
    return None


def _scores(q, k, v, causal=False, scale=None) -> torch.Tensor:
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2) * scale
    return scores.masked_fill(~visible(q.shape[2], k.shape[2], q.device), -torch.inf) if causal else scores


def _mistakes(q, k, v, causal, scale) -> Iterator[tuple[str, torch.Tensor]]:
    """Pairs of `what the result is` and the wrong result itself, (batch, heads, seq_len, head_dim)."""
    seq_len, kv_len, head_dim = q.shape[2], k.shape[2], q.shape[3]
    right_scale = 1 / math.sqrt(head_dim) if scale is None else scale
    for what, wrong_scale in (
        ("attention without the scale", 1.0),
        ("attention with scale 1 / head_dim instead of 1 / sqrt(head_dim)", 1 / head_dim),
        ("attention that multiplies by sqrt(head_dim) instead of dividing by it", math.sqrt(head_dim)),
        ("attention with the default scale: the argument `scale` is not used", 1 / math.sqrt(head_dim)),
        ("attention with the scale applied twice", right_scale**2),
    ):
        if wrong_scale != right_scale:
            yield what, reference(q, k, v, causal, wrong_scale)
    if causal:
        yield "attention without the causal mask", reference(q, k, v, False, scale)
    else:
        yield "attention with a causal mask that nobody asked for", _masked(q, k, v, right_scale, visible(seq_len, kv_len, q.device))
    if causal and seq_len > 1:
        everything = torch.ones(seq_len, kv_len, dtype=torch.bool, device=q.device)
        yield "attention whose mask hides the diagonal too: a query does see its own key", _masked(
            q, k, v, right_scale, everything.tril(kv_len - seq_len - 1)
        )
        yield "attention whose mask shows one key too many: a query must not see the next key", _masked(
            q, k, v, right_scale, everything.tril(kv_len - seq_len + 1)
        )
        yield (
            f"attention with the causal mask aligned top left: query i sees keys 0 to i + {kv_len - seq_len} here (kv_len - seq_len)",
            _masked(q, k, v, right_scale, everything.tril()),
        )
        yield "attention with the causal mask the wrong way round", _masked(q, k, v, right_scale, everything.triu(kv_len - seq_len))
    if 1 < k.shape[1] < q.shape[1]:
        head = torch.arange(q.shape[1], device=q.device) % k.shape[1]
        yield "attention where query head h reads key head h % kv_heads instead of h // (heads // kv_heads)", reference(
            q, k[:, head], v[:, head], causal, scale
        )
    yield from _softmax_mistakes(_scores(q, k, v, causal, scale), v.repeat_interleave(q.shape[1] // v.shape[1], dim=1))


def _masked(q, k, v, scale, mask) -> torch.Tensor:
    scores = _scores(q, k, v, False, scale).masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, dim=-1) @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


def _softmax_mistakes(scores, v) -> Iterator[tuple[str, torch.Tensor]]:
    kv_len = scores.shape[-1]
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    yield "the weighted sum of v before the division by the sum of the weights", weights @ v
    for tile in (1, *_TILES):
        if tile >= kv_len:
            break
        pad = -kv_len % tile
        tiles = torch.nn.functional.pad(scores, (0, pad), value=-torch.inf).unflatten(-1, (-1, tile))
        running = tiles.amax(dim=-1).cummax(dim=-1).values.repeat_interleave(tile, dim=-1)[..., :kv_len]
        unscaled = (scores - running).exp().nan_to_num(0.0)  # each weight against the maximum when its tile was read
        end = "as the running maximum grows"
        total = weights.sum(dim=-1, keepdim=True)
        yield f"what comes out when neither accumulator nor sum is rescaled {end}", (unscaled @ v) / unscaled.sum(-1, keepdim=True)
        yield f"what comes out when the accumulator is not rescaled {end}", (unscaled @ v) / total
        yield f"what comes out when the sum is not rescaled {end}", (weights @ v) / unscaled.sum(-1, keepdim=True)
    for tile in _TILES:
        if tile < kv_len:
            part = weights[..., :tile]
            yield f"attention to the first {tile} of {kv_len} keys only", (part @ v[..., :tile, :]) / part.sum(-1, keepdim=True)
        whole = kv_len // tile * tile
        if 0 < whole < kv_len:
            part = weights[..., :whole]
            without_tail = (part @ v[..., :whole, :]) / part.sum(-1, keepdim=True)
            yield f"attention without the last {kv_len - whole} of {kv_len} keys: a partial tile must be read too", without_tail
        if pad := -kv_len % tile:
            padded = torch.softmax(torch.nn.functional.pad(scores, (0, pad), value=0.0), dim=-1)
            yield f"attention in which {pad} keys past the end take part with score 0, up to a tile of {tile}", padded[..., :kv_len] @ v
