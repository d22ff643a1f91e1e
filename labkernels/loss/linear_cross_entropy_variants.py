"""How each version of `linear_cross_entropy` goes about it: which logits are there at the same time, and what is launched.

Each takes x (tokens, hidden), weight (vocab, hidden), target (tokens,), and returns the loss and the gradients of x and weight. The matmuls
are PyTorch's (cuBLAS), but for the logits of many tokens (products.py).
"""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div
from labkernels.loss import cross_entropy_variants as kernels
from labkernels.loss.products import logits_into
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
SMALLEST_CHUNK = 256  # tokens: with fewer, the matmuls wait for weight and dweight to be read


def v1_whole(x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean"):
    """All logits, and beside them their gradient."""
    logits = torch.mm(x, weight.t())
    scale, factor = scales(x, target, ignore_index, reduction)
    losses, gradient = kernels.v1_naive(logits, target, scale, ignore_index, label_smoothing, z_loss)
    return finished(losses, torch.mm(gradient, weight), torch.mm(gradient.t(), x), target, ignore_index, reduction, factor)


def v2_in_place(x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean"):
    """All logits, and then their gradient in the same place."""
    scale, factor = scales(x, target, ignore_index, reduction)
    found = in_chunks(x, weight, target, scale, ignore_index, label_smoothing, z_loss, chunk_tokens=max(1, len(x)), variant=kernels.v2_online)
    return finished(*found, target, ignore_index, reduction, factor)


def v3_chunked(x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean", chunk_tokens=None):
    """The logits of a chunk of tokens at a time, a quarter of the weight's size."""
    chunk = chunk_tokens or default_chunk(*x.shape, share=4)
    return v4_larger_chunks(x, weight, target, ignore_index, label_smoothing, z_loss, reduction, chunk)


def v4_larger_chunks(x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean", chunk_tokens=None):
    """Half of the weight's size: larger matmuls, and dweight is read and written half as often."""
    scale, factor = scales(x, target, ignore_index, reduction)
    found = in_chunks(x, weight, target, scale, ignore_index, label_smoothing, z_loss, chunk_tokens)
    return finished(*found, target, ignore_index, reduction, factor)


def default_chunk(tokens: int, hidden: int, share: int = 2) -> int:
    """As many tokens as make the logits one `share`-th of the weight's size, in equal chunks."""
    most = max(SMALLEST_CHUNK, hidden // share)
    return max(1, 8 * ceil_div(ceil_div(tokens, max(1, ceil_div(tokens, most))), 8))


def in_chunks(x, weight, target, scale, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, chunk_tokens=None, variant=None, gradients=(True, True)):  # fmt: skip
    """The losses (tokens,) float32, and the gradients of their sum times scale (a float32 tensor: one number, or one a token) as far as `gradients`
    of x and of weight are wanted; never more logits than those of chunk_tokens tokens."""
    (tokens, hidden), vocab = x.shape, weight.shape[0]
    chunk = min(chunk_tokens or default_chunk(tokens, hidden), max(1, tokens))
    options = (ignore_index, label_smoothing, z_loss)
    losses = torch.empty(tokens, dtype=torch.float32, device=x.device)
    dx = torch.empty((tokens, hidden), dtype=x.dtype, device=x.device) if gradients[0] else None
    dweight = torch.empty((vocab, hidden), dtype=x.dtype, device=x.device) if gradients[1] else None
    logits = torch.empty((chunk, vocab), dtype=x.dtype, device=x.device)
    for begin in range(0, tokens, chunk):
        part = slice(begin, min(begin + chunk, tokens))
        of_chunk = logits[: part.stop - part.start]
        logits_into(of_chunk, x[part], weight)
        run = variant or fastest(of_chunk)
        scale_of_chunk = scale[part] if scale.numel() > 1 else scale
        losses[part] = run(of_chunk, target[part], scale_of_chunk, *options, out=of_chunk, with_gradient=any(gradients))[0]
        if dx is not None:
            torch.mm(of_chunk, weight, out=dx[part])
        if dweight is not None and begin == 0:
            torch.mm(of_chunk.t(), x[part], out=dweight)
        elif dweight is not None:
            torch.addmm(dweight, of_chunk.t(), x[part], out=dweight)
    if dweight is not None and not tokens:
        dweight.zero_()
    return losses, dx, dweight


def fastest(logits):
    """The highest version of cross_entropy that takes these logits."""
    return next(variant.fn for variant in reversed(kernels.VARIANTS.values()) if variant.accepts(logits) is None)


def scales(x, target, ignore_index, reduction) -> tuple[torch.Tensor, torch.Tensor]:
    """By what the gradient of the logits is multiplied, and by what those of x and weight are afterwards: (1,) float32 each.

    1 / (number of targets that count) belongs to a mean. In float16 it would make most gradients of logits 0, so there it comes last."""
    one = torch.ones(1, dtype=torch.float32, device=x.device)
    if reduction != "mean":
        return one, one
    mean = 1.0 / (target != ignore_index).sum(dtype=torch.float32).reshape(1)
    return (one, mean) if x.dtype == torch.float16 else (mean, one)


def finished(losses, dx, dweight, target, ignore_index, reduction, factor):
    """The loss from the losses, and gradients times factor."""
    if dx.dtype == torch.float16:
        kernels.scale_in_place(dx, factor)
        kernels.scale_in_place(dweight, factor)
    return reduced(losses, target, ignore_index, reduction), dx, dweight


def reduced(losses, target, ignore_index, reduction) -> torch.Tensor:
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / (target != ignore_index).sum(dtype=torch.float32)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_whole", v1_whole, "all logits, and their gradient beside them", FOLDER / "v1_naive.cu"),
        Variant("v2_in_place", v2_in_place, "the gradient takes the logits' place", FOLDER / "v2_online.cu"),
        Variant("v3_chunked", v3_chunked, "the logits of some hundred tokens at a time: a quarter of the weight's size", FOLDER / "v4_registers.cu"),
        Variant(
            "v4_larger_chunks",
            v4_larger_chunks,
            "twice as many, for larger matmuls and half the additions to dweight; ours makes the logits",
            FOLDER / "v4_registers.cu",
        ),
    )
}
