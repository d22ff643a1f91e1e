"""How each version of `padding_offsets` is launched."""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel
from labkernels.operation import Variant
from labkernels.padding.offsets import Padding

FOLDER = Path(__file__).parent
THREADS = 256


def v1_naive(mask=None, lengths=None, seq_len=None, total=None) -> Padding:
    given, results = _arguments(mask, lengths, seq_len)
    batch, seq_len = results.inverse.shape
    place = kernel(FOLDER / "v1_offsets_naive.cu", "place_naive")
    place(ceil_div(batch * seq_len + 1, THREADS), THREADS, (*given[:2], results.cu_seqlens, results.inverse, results.indices, batch, *given[2:]))
    return _cut(results, total)


def v2_ballots(mask=None, lengths=None, seq_len=None, total=None) -> Padding:
    given, results = _arguments(mask, lengths, seq_len)
    batch = len(results.inverse)
    counts = torch.empty(batch, dtype=torch.int32, device=results.inverse.device)
    file = FOLDER / "v2_offsets_ballots.cu"
    kernel(file, "count_tokens")(batch, THREADS, (*given[:2], counts, *given[2:]))
    kernel(file, "place_tokens")(batch, THREADS, (*given[:2], counts, results.cu_seqlens, results.inverse, results.indices, *given[2:]))
    return _cut(results, total)


def _arguments(mask, lengths, seq_len) -> tuple[tuple, Padding]:
    """What both kernels read: mask or lengths, seq_len, the mask's strides; and room for the results."""
    given = lengths if mask is None else mask
    batch, seq_len = (len(lengths), seq_len) if mask is None else mask.shape
    room = lambda *size: torch.empty(size, dtype=torch.int32, device=given.device)
    read = (None, lengths.long().contiguous(), seq_len, 0, 0) if mask is None else (mask.view(torch.uint8), None, seq_len, *mask.stride())
    return read, Padding(room(batch * seq_len), room(batch, seq_len), room(batch + 1))


def _cut(results: Padding, total: int | None) -> Padding:
    """With as many indices as there are tokens."""
    return results._replace(indices=results.indices[: int(results.cu_seqlens[-1]) if total is None else total])


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "every thread counts all tokens before its own", FOLDER / "v1_offsets_naive.cu"),
        Variant("v2_ballots", v2_ballots, "counts by ballot, a block a sequence, two launches", FOLDER / "v2_offsets_ballots.cu"),
    )
}
