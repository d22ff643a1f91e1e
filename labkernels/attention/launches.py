"""Grids for more heads of all batches than grid y or z has places, 65535: one launch after another, each with so many batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

MOST = 65535  # of grid y, and of z


def launches(batches: int, heads: int = 1) -> Iterator[tuple[int, int]]:
    """(first batch, batches) of each launch, for blocks of `heads` heads of so many batches along one axis; nearly always a single one."""
    at_once = max(1, MOST // max(1, heads))
    for first in range(0, batches, at_once):
        yield first, min(at_once, batches - first)


def from_batch(first: int, tensors: Sequence[torch.Tensor | None], ends: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
    """Both, for a kernel whose first batch is this one: the tensors begin there, or, where sequences are packed, `ends`, their cu_seqlens, do."""
    if first == 0:
        return *tensors, *ends
    if ends[0] is not None:
        return *tensors, *(each[first:] for each in ends)
    return *(None if each is None else each[first:] for each in tensors), *ends
