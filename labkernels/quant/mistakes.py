"""The classic mistakes of quantised matmuls: what each computes, so that a wrong result can be recognised and named."""

from __future__ import annotations

from dataclasses import replace

import torch

from labkernels.quant.formats import FOUR_BIT, pack4


def hints(failure) -> str | None:
    """A sentence about the likely mistake behind a wrong result, or None."""
    x, weight = failure.inputs["x"].double(), failure.inputs["weight"]
    if failure.reason != "mismatch" or weight.shape[0] * weight.shape[1] * x.shape[0] > 1 << 24:
        return None
    return failure.matching([(what, x @ wrong.t()) for what, wrong in _wrong_weights(weight)])


def _wrong_weights(weight):
    right = weight.dequantize(torch.float64)
    n, k = right.shape
    if weight.scheme in FOUR_BIT:
        words = weight.packed
        in_order = torch.stack([words >> 4 * i & 15 for i in range(8)], dim=-1).view(n, -1)
        yield "the product with the eight numbers of a word in order, from the lowest bits up: they lie as k = 0 2 4 6 1 3 5 7", (
            replace(weight, packed=pack4(in_order)).dequantize(torch.float64)
        )
        if weight.groups > 1:
            first = weight.scales[:1].expand_as(weight.scales).contiguous()
            yield "the product with the scales of the first group for all groups", replace(weight, scales=first).dequantize(torch.float64)
    if weight.scheme == "int4":
        scale = weight.scales[..., 0].double().t().repeat_interleave(weight.group_size, 1)[:, :k]
        zero = weight.scales[..., 1].double().t().repeat_interleave(weight.group_size, 1)[:, :k]
        yield "scale * q: the zero is missing", right + scale * zero
        yield "scale * q - zero: the zero belongs inside, scale * (q - zero)", right + scale * zero - zero
        yield "scale * (q - 8): each group has a zero of its own", right + scale * (zero - 8)
    if weight.scheme == "int8":
        yield "the product with bytes without a sign", (weight.numbers().double() % 256) * weight.scales.double()[:, None]
    if weight.scheme not in FOUR_BIT:
        yield "the product without the scales", weight.numbers().double()
