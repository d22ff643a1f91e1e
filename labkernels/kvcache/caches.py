"""The caches themselves: tensors for all layers, and who is where in them. `ContiguousKVCache` for a fixed batch, `PagedKVCache` for many sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from labkernels.errors import ArgumentError
from labkernels.kvcache.append import append
from labkernels.kvcache.checks import CACHE_DTYPES
from labkernels.kvcache.decode_attention_op import OP as DECODE
from labkernels.kvcache.layout import LARGEST, slots_for
from labkernels.kvcache.pages import PageAllocator, block_table
from labkernels.kvcache.prefill import prefill
from labkernels.operation import dtype_name


def on_device(device, *arrays: np.ndarray) -> list[torch.Tensor]:
    """Tensors of these arrays, in one copy, as each copy waits for the GPU. NumPy's: torch.tensor takes five times as long for a prompt's numbers."""
    pieces = [array.tobytes() + bytes(-array.nbytes % 16) for array in arrays]  # each begins on 16 bytes
    moved = torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.uint8).to(device).split([*map(len, pieces)])
    return [piece[: array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape) for piece, array in zip(moved, arrays)]


class _Tensors:
    """k and v (layers, pages or batch, kv_heads, page_size or max_seq, head_dim), and the scales of int8 and fp8."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device):
        if dtype not in CACHE_DTYPES:
            raise ArgumentError(f"{type(self).__name__}: dtype is {dtype_name(dtype)}; it must be one of {', '.join(map(dtype_name, CACHE_DTYPES))}")
        self.k, self.v = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        scales = [torch.zeros(shape[:-1], dtype=torch.float32, device=device) if dtype in LARGEST else None for _ in range(2)]
        self.k_scale, self.v_scale = scales

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """k, v, k_scale and v_scale of one layer, as the kernels take them; views, to be written to."""
        return self.k[index], self.v[index], *(None if scale is None else scale[index] for scale in (self.k_scale, self.v_scale))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.k, self.v, self.k_scale, self.v_scale) if tensor is not None)

    def _write(self, layer: int, k, v, slots) -> None:
        k_cache, v_cache, k_scale, v_scale = self.layer(layer)
        append(k, v, k_cache, v_cache, slots, k_scale, v_scale)

    def _decode(self, layer: int, q, lengths, table, scale) -> torch.Tensor:
        k, v, k_scale, v_scale = self.layer(layer)
        return DECODE.run(q=q, k=k, v=v, lengths=lengths, block_table=table, scale=scale, k_scale=k_scale, v_scale=v_scale)

    def _prefill(self, layer: int, q, lengths, table, scale, **packing) -> torch.Tensor:
        k, v, k_scale, v_scale = self.layer(layer)
        return prefill(q, k, v, lengths, table, scale, k_scale=k_scale, v_scale=v_scale, **packing)


class ContiguousKVCache(_Tensors):
    """Room for max_seq tokens of each of `batch` sequences.

    `lengths` (batch,) int32 lies on the device: nothing here waits for a GPU, so that a decode step can be captured in a CUDA graph.

        cache.write(layer, k, v)          for each layer: k, v (batch, kv_heads, tokens, head_dim) behind what is there
        cache.attend(layer, q)            q (batch, heads, tokens, head_dim): the queries of those tokens
        cache.advance(tokens)             once, after the last layer
    """

    def __init__(self, layers: int, batch: int, kv_heads: int, max_seq: int, head_dim: int, dtype=torch.bfloat16, device="cuda"):
        super().__init__((layers, batch, kv_heads, max_seq, head_dim), dtype, device)
        self.max_seq = max_seq
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Tokens for which there is no room are left out; `advance` says so where that costs no waiting, on the CPU."""
        positions = self.lengths.long()[:, None] + torch.arange(k.shape[2], device=k.device)
        slots = slots_for(torch.where(positions < self.max_seq, positions, -1), None, self.max_seq)
        rows = (new.transpose(1, 2).flatten(0, 1) for new in (k, v))
        self._write(layer, *rows, slots.flatten())

    def attend(self, layer: int, q: torch.Tensor, scale: float | None = None) -> torch.Tensor:
        """Attention of the queries of the tokens that were written last against all of the cache; a few queries by decode_attention."""
        lengths = (self.lengths + q.shape[2]).clamp(max=self.max_seq)
        if q.shape[2] <= 4:
            return self._decode(layer, q, lengths, None, scale)
        return self._prefill(layer, q, lengths, None, scale)

    def advance(self, tokens: int) -> None:
        if self.lengths.device.type == "cpu" and int(self.lengths.max()) + tokens > self.max_seq:
            raise ArgumentError(f"ContiguousKVCache: {int(self.lengths.max())} tokens and {tokens} more are too many for max_seq {self.max_seq}")
        self.lengths += tokens

    def reset(self) -> None:
        self.lengths.zero_()


class StepNumbers(NamedTuple):
    """Of a step, on the CPU as NumPy's arrays, or on the device."""

    slots: np.ndarray | torch.Tensor  # (tokens,) int64
    positions: np.ndarray | torch.Tensor  # (tokens,) int64, of each new token in its sequence
    block_table: np.ndarray | torch.Tensor  # (batch, max_pages) int32
    lengths: np.ndarray | torch.Tensor  # (batch,) int32, the new tokens among them
    cu_seqlens_q: np.ndarray | torch.Tensor  # (batch + 1,) int32: where each sequence's new tokens begin and end


@dataclass(frozen=True)
class Step:
    """What one pass through a model needs to know: the new tokens of some sequences, one sequence after the other. Its numbers come to the device
    when the first of them is asked for."""

    sequences: tuple[int, ...]
    numbers: StepNumbers  # on the CPU
    max_seqlen_q: int
    device: torch.device

    @cached_property
    def on_device(self) -> StepNumbers:
        return StepNumbers(*on_device(self.device, *self.numbers))

    slots = property(lambda self: self.on_device.slots)
    positions = property(lambda self: self.on_device.positions)
    block_table = property(lambda self: self.on_device.block_table)
    lengths = property(lambda self: self.on_device.lengths)
    cu_seqlens_q = property(lambda self: self.on_device.cu_seqlens_q)

    @property
    def decodes(self) -> bool:
        """Has each sequence one new token?"""
        return self.max_seqlen_q == 1 and len(self.numbers.slots) == len(self.sequences)


class PagedKVCache(_Tensors):
    """Pages for any number of sequences of any length, as long as there are pages: `pages` is their PageAllocator.

        sequence, shared = cache.add(prompt)             tokens at the beginning that are in the cache already need no computing
        step = cache.step({sequence: prompt[shared:]})   pages for the new tokens, of one or many sequences; OutOfPages, and nothing has changed
        cache.write(layer, k, v, step)                   for each layer: k, v (tokens, kv_heads, head_dim) of the step's tokens
        cache.attend(layer, q, step)                     q (tokens, heads, head_dim)
        cache.finish(sequence)
    """

    def __init__(
        self, layers: int, num_pages: int, kv_heads: int, page_size: int, head_dim: int, dtype=torch.bfloat16, device="cuda", share_prefixes=True
    ):
        super().__init__((layers, num_pages, kv_heads, page_size, head_dim), dtype, device)
        self.pages = PageAllocator(num_pages, page_size, share_prefixes)
        self.add, self.fork, self.finish, self.truncate = self.pages.add, self.pages.fork, self.pages.finish, self.pages.truncate

    def step(self, tokens: Mapping[int, Sequence[int]], max_pages: int | None = None) -> Step:
        """Make room for the new tokens of these sequences, all or none, and say where they go. `max_pages`: the block table's width, where it
        must not change, as in a CUDA graph."""
        needed = sum(self.pages.pages_needed(sequence, len(new)) for sequence, new in tokens.items())
        self.pages.require(needed, f"a step of {len(tokens)} sequences")
        device, slots, positions = self.k.device, [], []
        for sequence, new in tokens.items():
            start = self.pages.length(sequence)
            own, copies = self.pages.append(sequence, new)
            for old, copy in copies:
                for cache in (self.k, self.v, self.k_scale, self.v_scale):
                    if cache is not None:
                        cache[:, copy] = cache[:, old]
            slots += own
            positions.append(np.arange(start, start + len(new)))
        counts = [len(new) for new in tokens.values()]
        table = np.array(block_table([self.pages.pages(s) for s in tokens], max_pages), np.int32).reshape(len(tokens), -1)
        slots, positions = np.array(slots, np.int64), np.concatenate([[], *positions]).astype(np.int64)
        lengths, ends = (np.array(numbers, np.int32) for numbers in ([self.pages.length(s) for s in tokens], [0, *np.cumsum(counts)]))
        return Step(tuple(tokens), StepNumbers(slots, positions, table, lengths, ends), max(counts, default=0), device)

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, step: Step) -> None:
        self._write(layer, k, v, step.slots)

    def attend(self, layer: int, q: torch.Tensor, step: Step, scale: float | None = None) -> torch.Tensor:
        """Attention of the step's queries, each against its sequence up to itself: decode_attention if each sequence has one, else in chunks."""
        if step.decodes:
            return self._decode(layer, q, step.lengths, step.block_table, scale)
        return self._prefill(layer, q, step.lengths, step.block_table, scale, cu_seqlens_q=step.cu_seqlens_q, max_seqlen_q=step.max_seqlen_q)
