"""The classic mistakes of attention kernels: what each computes, so that a wrong result can be recognised and named."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from labkernels.attention.reference import reference, scores, visible, weighted

_TILES = (16, 32, 64, 128)


def hints(failure) -> str | None:
    """A sentence about the likely mistake behind a wrong result, or None."""
    from labkernels.lab.compare import doubled

    inputs = doubled(failure.inputs)
    if failure.reason == "not_finite":
        return _hint_not_finite(inputs)
    if inputs["q"].shape[1] * inputs["q"].shape[2] * inputs["k"].shape[2] > 1 << 22:
        return None  # trying every mistake on a large case takes longer than the check did
    return failure.matching(_mistakes(**inputs))


def _hint_not_finite(inputs: dict) -> str | None:
    if inputs["causal"] or inputs.keys() & {"window", "mask"}:
        return (
            "Every score of a hidden key must be written, as -inf. And where all scores of a row or tile are -inf, so is their maximum, "
            "and exp(-inf - -inf) is nan: skip it, or subtract 0 there."
        )
    largest = scores(**{name: value for name, value in inputs.items() if name != "v"}).max()
    if largest > 80:
        return f"Scores reach {largest:.0f}, and exp(89) is more than a float32 can hold: subtract each row's maximum first."
    return None


def _mistakes(q, k, v, causal, scale, **options) -> Iterator[tuple[str, torch.Tensor]]:
    """Pairs of `what the result is` and the wrong result itself, (batch, heads, seq_len, head_dim)."""
    head_dim = q.shape[3]
    right_scale = 1 / math.sqrt(head_dim) if scale is None else scale
    for what, wrong_scale in (
        ("attention without the scale", 1.0),
        ("attention with scale 1 / head_dim instead of 1 / sqrt(head_dim)", 1 / head_dim),
        ("attention that multiplies by sqrt(head_dim) instead of dividing by it", math.sqrt(head_dim)),
        ("attention with the default scale: the argument `scale` is not used", 1 / math.sqrt(head_dim)),
        ("attention with the scale applied twice", right_scale**2),
    ):
        if wrong_scale != right_scale:
            yield what, reference(q, k, v, causal, wrong_scale, **options)
    if not options:
        yield from _causal_mistakes(q, k, v, causal, right_scale)
    if options.get("window"):
        yield from _window_mistakes(q, k, v, causal, scale, **options)
    if options.get("mask") is not None:
        yield from _mask_mistakes(q, k, v, causal, scale, **options)
    if 1 < k.shape[1] < q.shape[1]:
        head = torch.arange(q.shape[1], device=q.device) % k.shape[1]
        yield "attention where query head h reads key head h % kv_heads instead of h // (heads // kv_heads)", reference(
            q, k[:, head], v[:, head], causal, scale, **options
        )
    yield from _softmax_mistakes(scores(q, k, causal, scale, **options), v.repeat_interleave(q.shape[1] // v.shape[1], dim=1))


def _causal_mistakes(q, k, v, causal, scale) -> Iterator[tuple[str, torch.Tensor]]:
    seq_len, kv_len = q.shape[2], k.shape[2]

    def with_mask(mask):
        return reference(q, k, v, scale=scale, mask=mask)

    if not causal:
        yield "attention with a causal mask that nobody asked for", with_mask(visible(seq_len, kv_len, q.device))
        return
    yield "attention without the causal mask", reference(q, k, v, False, scale)
    if seq_len == 1:
        return
    everything = torch.ones(seq_len, kv_len, dtype=torch.bool, device=q.device)
    yield "attention whose mask hides the diagonal too: a query does see its own key", with_mask(everything.tril(kv_len - seq_len - 1))
    yield "attention whose mask shows one key too many: a query must not see the next key", with_mask(everything.tril(kv_len - seq_len + 1))
    yield (
        f"attention with the causal mask aligned top left: query i sees keys 0 to i + {kv_len - seq_len} here (kv_len - seq_len)",
        with_mask(everything.tril()),
    )
    yield "attention with the causal mask the wrong way round", with_mask(everything.triu(kv_len - seq_len))


def _window_mistakes(q, k, v, causal, scale, window, mask=None) -> Iterator[tuple[str, torch.Tensor]]:
    left, right = window
    yield "attention without the window", reference(q, k, v, causal, scale, mask=mask)
    if causal:
        yield "attention with the window but without the causal mask", reference(q, k, v, False, scale, window=window, mask=mask)
    for what, wrong in (
        ("is one key too short on its left: (left, right) shows the query's own key and `left` keys before it", (left and left - 1, right)),
        ("is one key too long on its left: (left, right) shows the query's own key and `left` keys before it", (left and left + 1, right)),
        ("is one key too short on its right", (left, right and right - 1)),
        ("is one key too long on its right", (left, right and right + 1)),
        ("has its sides exchanged", (right, left)),
    ):
        if wrong != window:
            yield f"attention whose window {what}", reference(q, k, v, causal, scale, window=wrong, mask=mask)


def _mask_mistakes(q, k, v, causal, scale, mask, window=None) -> Iterator[tuple[str, torch.Tensor]]:
    yield "attention without the argument `mask`", reference(q, k, v, causal, scale, window=window)
    if mask.dtype == torch.bool:
        yield "attention with the mask the wrong way round: True means that the query may see the key", reference(
            q, k, v, causal, scale, window=window, mask=~mask
        )
        return
    right_scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    yield "attention whose mask is scaled too: it is added to the scores after the scale", reference(
        q, k, v, causal, scale, window=window, mask=mask * right_scale
    )
    found = scores(q, k, causal, scale, window=window)
    yield "attention whose mask is added in units of log 2 without the factor log2(e)", weighted(found + mask * math.log(2), v)


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
