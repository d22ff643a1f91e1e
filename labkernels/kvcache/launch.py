"""What the launchers of the KV cache share: the kernels' `Problem`, and counters that are zero without being set to zero each time."""

from __future__ import annotations

import functools
import math
import struct

import torch

from labkernels.cuda.variants import ceil_div

LOG2_OF_E = 1.4426950408889634
RESERVE = 1 << 20  # counters that a GPU keeps: 4 MB


def as_rows(q: torch.Tensor) -> torch.Tensor:
    """q (batch, heads, queries, head_dim), of which (batch, heads, head_dim) has one query."""
    return q if q.dim() == 4 else q[:, :, None]


def capacity(k: torch.Tensor, block_table: torch.Tensor | None) -> int:
    """How many tokens a sequence may have."""
    return k.shape[2] if block_table is None else block_table.shape[1] * k.shape[2]


def problem_bytes(q, k, v, block_table, scale, k_scale, v_scale) -> bytes:
    """The kernels' `Problem` (cache.cuh); q (batch, heads, queries, head_dim)."""
    batch, heads, queries, head_dim = q.shape
    kv_heads, page_size = k.shape[1:3]
    shift = page_size.bit_length() - 1 if page_size & (page_size - 1) == 0 else -1
    scales = [stride for tensor in (k_scale, v_scale) for stride in (tensor.stride()[:2] if tensor is not None else (0, 0))]
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *scales)
    sizes = (batch, kv_heads, heads // kv_heads, queries, head_dim, page_size, shift, 0 if block_table is None else block_table.stride(0))
    return struct.pack("<13q8if4x", *strides, *sizes, (1 / math.sqrt(head_dim) if scale is None else scale) * LOG2_OF_E)


def counters(count: int, device: torch.device) -> torch.Tensor:
    """`count` ints that are zero, for a kernel that leaves them zero.

    On a GPU they come out of a reserve, so that no launch has to clear them: one stretch for each stream, and one for each launch that a CUDA
    graph captures, for a graph may be replayed beside anything. When the reserve is empty a capture clears its own.
    """
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    return _reserve(device.index if device.index is not None else torch.cuda.current_device()).take(count)


@functools.cache
def _reserve(index: int) -> _Reserve:
    return _Reserve(torch.device("cuda", index))


class _Reserve:
    def __init__(self, device: torch.device):
        self.device = device
        self.free: torch.Tensor | None = None  # zeros that nobody has
        self.of_stream: dict[int, torch.Tensor] = {}

    def take(self, count: int) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            found = self._cut(count)
            return torch.zeros(count, dtype=torch.int32, device=self.device) if found is None else found
        stream = torch.cuda.current_stream(self.device).cuda_stream
        found = self.of_stream.get(stream)
        if found is None or found.shape[0] < count:
            found = self._cut(max(count, 4096))
            if found is None:
                self.free = torch.zeros(max(RESERVE, 2 * count), dtype=torch.int32, device=self.device)
                torch.cuda.synchronize(self.device)  # every stream sees the zeros
                found = self._cut(max(count, 4096))
            self.of_stream[stream] = found
        return found

    def _cut(self, count: int) -> torch.Tensor | None:
        count = 32 * ceil_div(count, 32)  # a line of L2 each
        if self.free is None or self.free.shape[0] < count:
            return None
        found, self.free = self.free[:count], self.free[count:]
        return found
