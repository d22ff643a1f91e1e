"""`padding_offsets`: which positions of padded sequences hold tokens, and where these lie when packed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from labkernels.cuda.variants import kernel
from labkernels.errors import ArgumentError
from labkernels.operation import dtype_name

FILE = Path(__file__).parent / "offsets.cu"
THREADS = 256


class Padding(NamedTuple):
    """Where the tokens of padded sequences lie when packed one after the other, all int32.

    indices      (total,): a packed token's position among all, sequence * seq_len + position
    inverse      (batch, seq_len): a position's place when packed, -1 where there is padding
    cu_seqlens   (batch + 1,): where each sequence begins when packed, and at last the total; as attention_varlen takes it
    """

    indices: torch.Tensor
    inverse: torch.Tensor
    cu_seqlens: torch.Tensor


def padding_offsets(mask: torch.Tensor | None = None, *, lengths: torch.Tensor | None = None, seq_len: int | None = None, total: int | None = None) -> Padding:
    """Where the tokens of padded sequences lie when packed: see `Padding`.

    Either `mask` (batch, seq_len) bool, true where there is a token, wherever that is; or `lengths` (batch,) int32 or int64 of sequences
    padded at their ends to `seq_len`. The number of tokens is needed on the host for the length of `indices`: give it as `total`, or a GPU
    is waited for. Raises ArgumentError that names the wrong argument.
    """
    problem = _problem(mask, lengths, seq_len)
    if problem:
        raise ArgumentError(f"padding_offsets: {problem}")
    given = lengths if mask is None else mask
    batch, seq_len = (len(lengths), seq_len) if mask is None else mask.shape
    device = given.device
    counts = torch.empty(batch, dtype=torch.int32, device=device)
    cu_seqlens = torch.zeros(batch + 1, dtype=torch.int32, device=device)
    inverse = torch.empty((batch, seq_len), dtype=torch.int32, device=device)
    indices = torch.empty(batch * seq_len, dtype=torch.int32, device=device)
    if batch:
        pointers = (None, lengths.long().contiguous()) if mask is None else (mask.view(torch.uint8), None)
        rest = (seq_len, *((0, 0) if mask is None else mask.stride()))
        kernel(FILE, "count_tokens")(batch, THREADS, (*pointers, counts, *rest))
        kernel(FILE, "place_tokens")(batch, THREADS, (*pointers, counts, cu_seqlens, inverse, indices, *rest))
    return Padding(indices[: int(cu_seqlens[-1]) if total is None else total], inverse, cu_seqlens)


def _problem(mask, lengths, seq_len) -> str | None:
    if (mask is None) == (lengths is None):
        return "give either mask or lengths"
    if mask is not None:
        if mask.dim() != 2 or mask.dtype != torch.bool:
            return f"mask is {dtype_name(mask.dtype)} of shape {tuple(mask.shape)}; it must be bool, (batch, seq_len)"
    elif lengths.dim() != 1 or lengths.dtype not in (torch.int32, torch.int64):
        return f"lengths is {dtype_name(lengths.dtype)} of shape {tuple(lengths.shape)}; it must be int32 or int64, (batch,)"
    elif not isinstance(seq_len, int) or seq_len < 0:
        return f"seq_len is {seq_len!r}; with lengths it must be an int of at least 0"
    size = mask.numel() if mask is not None else len(lengths) * seq_len
    return f"{size} positions are more than int32 can count" if size >= 2**31 else None
