"""How each version of `linear_cross_entropy` goes about it: which logits are there at the same time, and what is launched.

Each takes x (tokens, hidden), weight (vocab, hidden), target (tokens,), and returns the loss and the gradients of x and weight. The matmuls
are PyTorch's (cuBLAS), but for the logits of many tokens (products.py).
"""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div
from labkernels.loss import cross_entropy_variants as kernels
from labkernels.loss import fused
from labkernels.loss.products import logits_into
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
BORROWED = 0.5  # of dweight holds logits, in v5
BLOCK = 1792  # of the vocabulary, in v5: with 2048, whose logits of 8192 tokens fill more of L2, it was slower
BLOCK_SHARE = 16  # of the weight is what a block of logits of all tokens has, about
LEAST_BLOCK = 256  # of the vocabulary: with fewer, the matmuls wait for x
LOGITS_BYTES = 256_000_000  # that are little enough to have them whatever the weight's size is
LARGE_CHUNK = 2048  # tokens: with more, the matmuls are no faster
MANY_TOKENS, LARGE_HIDDEN = 4096, 2048  # from which v6 is taken, where the vocabulary is large: least memory, see exponentials.cu
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


def v5_borrowed(x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean"):
    """Half of dweight holds the logits of a chunk, and becomes a gradient at the end, from logits computed once more."""
    scale, factor = scales(x, target, ignore_index, reduction)
    found = in_borrowed_memory(x, weight, target, scale, ignore_index, label_smoothing, z_loss)
    return finished(*found, target, ignore_index, reduction, factor)


def v6_exponentials(x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean"):
    """The logits' matmul writes their exponentials: no pass over the logits, larger chunks, less that is computed once more."""
    scale, factor = scales(x, target, ignore_index, reduction)
    return finished(*fused.in_fused_chunks(x, weight, target, scale, ignore_index), target, ignore_index, reduction, factor)


def worked_out(x, weight, target, scale, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, chunk_tokens=None, gradients=(True, True)):
    """As in_chunks, or, where both gradients are wanted, in borrowed memory: with chunk_tokens 0, and by v6 where nobody says and the logits are many.

    Not by v6, which adds parts of dx in no fixed order, where torch.use_deterministic_algorithms asks for the same bits each time.
    """
    (tokens, hidden), vocab, options = x.shape, weight.shape[0], (ignore_index, label_smoothing, z_loss)
    many = tokens >= MANY_TOKENS and hidden >= LARGE_HIDDEN and LARGE_CHUNK * vocab * x.element_size() > LOGITS_BYTES
    many = many and not torch.are_deterministic_algorithms_enabled()
    if many and not chunk_tokens and all(gradients) and x.is_cuda and fused.accepts(x, weight, target, *options) is None:
        scratch = vocab * hidden // (2 * fused.SCRATCH_SHARE) if chunk_tokens == 0 else None
        return fused.in_fused_chunks(x, weight, target, scale, ignore_index, fused.Layout.of(tokens, hidden, vocab, scratch=scratch))
    if chunk_tokens == 0 and all(gradients) and tokens > hidden * BORROWED:
        return in_borrowed_memory(x, weight, target, scale, *options)
    return in_chunks(x, weight, target, scale, *options, chunk_tokens, gradients=gradients)


def in_borrowed_memory(x, weight, target, scale, ignore_index=-100, label_smoothing=0.0, z_loss=0.0):
    """As in_chunks with both gradients, where chunks lie in the rows of dweight that are made last.

    The first rows of dweight are added up chunk by chunk. For the rest a block of the vocabulary at a time has all tokens' logits computed again, a
    sixth of all FLOPs; their log(sum(exp)) is known by then. Beside the gradients there is but one such block, a sixteenth of the weight's size.
    """
    (tokens, hidden), vocab = x.shape, weight.shape[0]
    options = (ignore_index, label_smoothing, z_loss)
    losses, lses = torch.empty((2, tokens), dtype=torch.float32, device=x.device)
    dx, dweight = torch.empty((tokens, hidden), dtype=x.dtype, device=x.device), torch.empty((vocab, hidden), dtype=x.dtype, device=x.device)
    at_once = int(vocab * (1 - BORROWED)) // 8 * 8  # rows of dweight that are made chunk by chunk
    chunk = max(1, min(tokens, (vocab - at_once) * hidden // vocab))
    borrowed = dweight[at_once:].view(-1)[: chunk * vocab].view(chunk, vocab)
    run = fastest(borrowed, with_lse=True)
    for begin in range(0, tokens, chunk):
        part = slice(begin, min(begin + chunk, tokens))
        logits = borrowed[: part.stop - begin]
        logits_into(logits, x[part], weight)
        losses[part] = run(logits, target[part], scale[part] if scale.numel() > 1 else scale, *options, out=logits, lses=lses[part])[0]
        torch.mm(logits, weight, out=dx[part])
        rows = dweight[:at_once]
        torch.addmm(rows, logits[:, :at_once].t(), x[part], beta=0 if begin == 0 else 1, out=rows)
    share = vocab * hidden // (BLOCK_SHARE * tokens)
    block = BLOCK * round(share / BLOCK) or max(LEAST_BLOCK, share // 8 * 8)
    scratch = torch.empty(tokens * min(block, vocab - at_once), dtype=x.dtype, device=x.device)
    for begin in range(at_once, vocab, block):
        part = slice(begin, min(begin + block, vocab))
        logits = scratch[: tokens * (part.stop - begin)].view(tokens, part.stop - begin)
        logits_into(logits, x, weight[part])
        kernels.gradient_in_place(logits, begin, vocab, target, lses, scale, *options)
        torch.mm(logits.t(), x, out=dweight[part])
    return losses, dx, dweight


def default_chunk(tokens: int, hidden: int, share: int = 2, bytes_of_token: int = LOGITS_BYTES) -> int:
    """As many tokens as make the logits one `share`-th of the weight's size, in equal chunks; up to LARGE_CHUNK where all of them take but LOGITS_BYTES."""
    most = max(SMALLEST_CHUNK, hidden // share, min(LARGE_CHUNK, LOGITS_BYTES // bytes_of_token))
    return max(1, 8 * ceil_div(ceil_div(tokens, max(1, ceil_div(tokens, most))), 8))


def in_chunks(x, weight, target, scale, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, chunk_tokens=None, variant=None, gradients=(True, True)):  # fmt: skip
    """The losses (tokens,) float32, and the gradients of their sum times scale (a float32 tensor: one number, or one a token) as far as `gradients`
    of x and of weight are wanted; never more logits than those of chunk_tokens tokens."""
    (tokens, hidden), vocab = x.shape, weight.shape[0]
    chunk = min(chunk_tokens or default_chunk(tokens, hidden, bytes_of_token=vocab * x.element_size()), max(1, tokens))
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


def fastest(logits, with_lse=False):
    """The version of cross_entropy that takes these logits in the least time, of those that tell log(sum(exp)) if that is asked for."""
    names = ["v4_registers", "v2_online"] if with_lse else [*reversed(kernels.VARIANTS)]
    if logits.element_size() == 2 and not with_lse:
        names.insert(0, "v3_cluster")  # in 16 bits by 6 to 10% (data/measured/h200/cross_entropy.csv)
    return next(kernels.VARIANTS[name].fn for name in names if kernels.VARIANTS[name].accepts(logits) is None)


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


def _not_empty(x, *_, **__) -> str | None:
    return None if len(x) else "takes at least one token"


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
        Variant(
            "v5_borrowed", v5_borrowed, "chunks of logits lie in half of dweight, whose logits are computed once more", FOLDER / "from_lse.cu", _not_empty
        ),
        Variant(
            "v6_exponentials",
            v6_exponentials,
            "exponentials come out of the logits' matmul: no pass over logits, and factors of rows go into x and dx",
            fused.FOLDER / "exponentials.cu",
            fused.accepts,
        ),
    )
}
