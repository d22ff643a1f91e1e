"""What the launchers of the rotary kernels share: strides and positions as the kernels' structs, pairs and tables of angles."""

from __future__ import annotations

import struct

import torch

from labkernels.cuda.variants import ceil_div, processors

THREADS = 256
HEADS = 4  # of a thread
FILLING = 1024  # threads that a multiprocessor should have at least


def head_strides(tensor: torch.Tensor) -> bytes:
    """The kernels' `HeadStrides` of a (batch, heads, seq, head_dim) tensor."""
    return struct.pack("<4q", *tensor.stride())


def position_layout(positions: torch.Tensor | None) -> bytes:
    """The kernels' `Positions` of positions (seq,) or (batch, seq), int32 or int64."""
    if positions is None:
        return struct.pack("<2q2i", 0, 0, 0, 0)
    batch_stride = positions.stride(0) if positions.dim() == 2 and positions.shape[0] > 1 else 0
    return struct.pack("<2q2i", batch_stride, positions.stride(-1), positions.dtype == torch.int64, 0)


def pairs_of(angles: torch.Tensor) -> tuple[int, int]:
    """How many pairs of a head are turned, and how many rows the table has: 0 for frequencies."""
    return (angles.shape[0], 0) if angles.dim() == 1 else (angles.shape[1] // 2, angles.shape[0])


def vectors_fit(width: int, pairs: int, head_dim: int, *tensors: torch.Tensor) -> bool:
    """Do vectors of `width` elements make up a head and both halves of what is turned, and does each lie on a multiple of its size?"""
    if pairs % width or head_dim % width or head_dim > 2 * pairs and (head_dim - 2 * pairs) % width:
        return False
    size = tensors[0].element_size() * width
    for tensor in tensors:
        distances = [stride for stride, length in zip(tensor.stride()[:-1], tensor.shape[:-1]) if length > 1]
        if tensor.stride(-1) != 1 or tensor.data_ptr() % size or any(distance % width for distance in distances):
            return False
    return True


def heads_each(units: int, tensor: torch.Tensor, most: int = HEADS) -> int:
    """How many heads a thread takes: one where all heads' parts, `units` of them, do not fill the GPU even so, else `most` for the same sines."""
    return most if units >= FILLING * processors(tensor) else 1


def block_of(parts: int, heads: int, each: int, tokens_first: bool = False, threads: int = THREADS) -> tuple[tuple[int, int, int], int]:
    """A block of about `threads` threads (parts, lanes, tokens), whose lanes share a token's heads, `each` a thread; and in how many slices of
    blocks a token's heads are, where they are too many for one. With `tokens_first`, where tokens are nearer in memory than heads: one lane."""
    lanes = 1 if tokens_first else min(ceil_div(heads, each), max(1, threads // parts))
    slices = ceil_div(heads, each * lanes)
    most = min(64, max(1, threads // (parts * lanes)))
    whole_warps = [tokens for tokens in range(most, 0, -1) if parts * lanes * tokens % 32 == 0]
    return (parts, lanes, (whole_warps or [most])[0]), slices
