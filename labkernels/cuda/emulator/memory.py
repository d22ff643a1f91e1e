"""Tensors copied into a memory file that a child process maps: each storage once, between red zones."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import torch

from labkernels.cuda.emulator.child import RED_ZONE

_ALIGNMENT = 4096


@dataclass
class _Stored:
    storage: torch.UntypedStorage
    low: int  # first and last byte used, within the storage
    high: int
    offset: int = 0  # of `low` in the file


class MemoryFile:
    """Copies of the tensors among `args`, in a file without a name. `address` and `regions` are offsets in that file."""

    def __init__(self, args):
        self._stored: dict[int, _Stored] = {}
        behind = [getattr(a, "tensor", a) for a in args]  # of a tensor map, its tensor
        self._tensors = {i: a for i, a in enumerate(behind) if hasattr(a, "data_ptr") and a.numel()}
        for tensor in self._tensors.values():
            low, high = extent(tensor)
            storage = tensor.untyped_storage()
            known = self._stored.setdefault(storage.data_ptr(), _Stored(storage, low, high))
            known.low, known.high = min(known.low, low), max(known.high, high)
        size = RED_ZONE
        for stored in self._stored.values():
            stored.offset = -(-size // _ALIGNMENT) * _ALIGNMENT + stored.low % _ALIGNMENT  # alignment as in the original
            size = stored.offset + stored.high - stored.low + RED_ZONE
        self.descriptor = os.memfd_create("labkernels")
        os.ftruncate(self.descriptor, size)
        self._memory = mmap.mmap(self.descriptor, size)
        self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)
        for stored in self._stored.values():
            self._file_part(stored).copy_(_storage_part(stored))

    def address(self, position: int) -> int | None:
        """Where the data of argument `position` begin, if it is a tensor with elements."""
        tensor = self._tensors.get(position)
        if tensor is None:
            return None
        stored = self._stored[tensor.untyped_storage().data_ptr()]
        return stored.offset + tensor.storage_offset() * tensor.element_size() - stored.low

    def region(self, position: int) -> tuple[int, int, int]:
        """Offset, length and bytes an element of what argument `position` may be reached through."""
        tensor = self._tensors[position]
        low, high = extent(tensor)
        stored = self._stored[tensor.untyped_storage().data_ptr()]
        return stored.offset + low - stored.low, high - low, tensor.element_size()

    def write_back(self) -> None:
        """Copy everything back into the tensors."""
        for stored in self._stored.values():
            _storage_part(stored).copy_(self._file_part(stored))

    def close(self) -> None:
        del self._bytes
        self._memory.close()
        os.close(self.descriptor)

    def _file_part(self, stored: _Stored) -> torch.Tensor:
        return self._bytes[stored.offset : stored.offset + stored.high - stored.low]


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The first and the last byte (exclusive) of the storage that a tensor's elements occupy."""
    first = tensor.storage_offset()
    last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first * tensor.element_size(), (last + 1) * tensor.element_size()


def _storage_part(stored: _Stored) -> torch.Tensor:
    whole = torch.empty(0, dtype=torch.uint8).set_(stored.storage)
    return whole[stored.low : stored.high]
