"""Which thread wrote an element of a tensor: launches traced in the emulator, and asked afterwards."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass, field

from labkernels.cuda.emulator import toolchain
from labkernels.cuda.emulator.compile import library
from labkernels.cuda.emulator.launch import FINISHED, SANITIZER
from labkernels.cuda.emulator.memory import extent
from labkernels.cuda.emulator.remote import launch_in_child
from labkernels.errors import LaunchError

_NOBODY = 0xFFFFFFFF


@dataclass(frozen=True)
class _Written:
    """Of one tensor in one launch: its place in memory, and for each item the block and thread that wrote it."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    low: int
    high: int
    item_bytes: int
    writers: bytes


@dataclass
class Trace:
    """Launches under `tracing()`, in order."""

    written: list[_Written] = field(default_factory=list)

    def writer(self, tensor, index: tuple[int, ...]) -> str:
        """`thread 3 of block 2 (softmax)` for the last write to `tensor[index]`, or an empty text if no launch wrote it."""
        offset = sum(i * stride for i, stride in zip(index, tensor.stride(), strict=True))
        address = tensor.data_ptr() + offset * tensor.element_size()
        for row in reversed(self.written):
            if not row.low <= address < row.high:
                continue
            block, thread = struct.unpack_from("<II", row.writers, 8 * ((address - row.low) // row.item_bytes))
            if block != _NOBODY:
                return f"thread {_index(thread, row.block)} of block {_index(block, row.grid)} ({row.kernel})"
        return ""

    def launch(self, kernel, grid, block, args, values, shared_mem: int, cluster, time_limit_s: float | None) -> None:
        """Launch `kernel` watched, and note who wrote what. Raises LaunchError if it does not end well."""
        path = library(kernel.source, kernel.name, toolchain.SANITIZED)
        with launch_in_child(
            kernel, path, grid, block, args, values, shared_mem, cluster=cluster, watch=SANITIZER, time_limit_s=time_limit_s, writers=True
        ) as launch:
            if launch.outcome != FINISHED:
                raise LaunchError(launch.answer["failure"])
            launch.write_back()
        tensors = [a for a in args if hasattr(a, "data_ptr") and a.numel()]
        for tensor, writers in zip(tensors, launch.answer["writers"], strict=True):
            low, high = (tensor.untyped_storage().data_ptr() + end for end in extent(tensor))
            self.written.append(_Written(kernel.name, grid, block, low, high, tensor.element_size(), base64.b64decode(writers)))


def _index(linear: int, shape: tuple[int, int, int]):
    index = (linear % shape[0], linear // shape[0] % shape[1], linear // shape[0] // shape[1])
    return index[0] if shape[1] == shape[2] == 1 else index
