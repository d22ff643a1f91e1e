"""The classic mistakes of feed-forward kernels: what each computes, so that a wrong result can be recognised and named."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from labkernels.ffn.reference import ACTIVATIONS, is_gated, reference


def hints(failure) -> str | None:
    """A sentence about the likely mistake behind a wrong result, or None."""
    inputs = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in failure.inputs.items()}
    if failure.reason != "mismatch" or inputs["x"].shape[0] * inputs["w1"].numel() > 1 << 24:
        return None  # trying every mistake on a large case takes longer than the check did
    return failure.matching(_wrong(**inputs))


def _wrong(x, w1, w2, b1, b2, activation) -> Iterator[tuple[str, torch.Tensor]]:
    """Pairs of `what the result is` and the wrong result itself, (tokens, embed)."""
    plus = lambda product, bias: product if bias is None else product + bias
    pre = plus(x @ w1.t(), b1)
    finish = lambda h: plus(h @ w2.t(), b2)
    if is_gated(activation):
        gate, up = pre.chunk(2, -1)
        yield "the right thing with gate and up exchanged: the gates are the first half of w1's rows", finish(F.silu(up) * gate)
        yield "the right thing with sigmoid(gate) * up: silu(x) is x * sigmoid(x)", finish(torch.sigmoid(gate) * up)
        yield "the right thing with gate * up: the activation is missing", finish(gate * up)
        yield "the right thing with silu(gate) alone, not multiplied by up", finish(F.silu(gate))
        even, odd = pre[:, ::2], pre[:, 1::2]
        yield "the right thing with gates and ups taken in turns: all gates come before all ups", finish(F.silu(even) * odd)
    else:
        yield "the right thing without the activation", finish(pre)
        for other in ACTIVATIONS:
            if other != activation and not is_gated(other):
                yield f"the right thing with the activation {other} instead of {activation}", finish(ACTIVATIONS[other](pre))
    if b1 is not None:
        yield "the right thing without b1", reference(x, w1, w2, None, b2, activation)
        if not is_gated(activation):
            yield "the right thing with b1 added after the activation", finish(ACTIVATIONS[activation](x @ w1.t()) + b1)
    if b2 is not None:
        yield "the right thing without b2", reference(x, w1, w2, b1, None, activation)
    tokens = x.shape[0]
    if tokens > 1:
        yield "the first token's result for every token", reference(x, w1, w2, b1, b2, activation)[:1].expand(tokens, -1)
    for most in (16, 64, 128):
        if tokens > most:
            right = reference(x, w1, w2, b1, b2, activation)
            yield f"right for the first {most} tokens, and zero for the others", torch.cat([right[:most], 0 * right[most:]])
