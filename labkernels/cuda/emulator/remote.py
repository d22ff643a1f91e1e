"""A launch of a `Kernel` in the child process: its tensors sent there, and what came of it brought back."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from labkernels.child_process import ChildDied
from labkernels.cuda.emulator import child
from labkernels.cuda.emulator.launch import NOBODY, source_lines
from labkernels.cuda.emulator.memory import MemoryFile
from labkernels.cuda.emulator.symbols import symbols
from labkernels.errors import LaunchError


class RemoteLaunch:
    """What a launch in the child process did. `answer` is the child's; `grid` and `block` are triples."""

    def __init__(self, kernel, library: Path, grid, block, args, memory: MemoryFile, shared_mem: int, answer: dict):
        self.kernel, self.library, self.grid, self.block, self.answer = kernel, library, grid, block, answer
        self._args, self._memory, self._shared_mem = args, memory, shared_mem

    @property
    def outcome(self) -> int:
        return self.answer["outcome"]

    def write_back(self) -> None:
        """Copy what the kernel wrote into the tensors. Only while the launch's `with` lasts."""
        self._memory.write_back()

    def arrays(self) -> list[tuple[str, int, int]]:
        """Name, bytes and bytes an element (0: as accessed) of the regions, in the order in which the child lists them."""
        parameters = self.kernel.signature
        arrays = []
        for position in _tensor_positions(self._args, self._memory):
            _, length, item = self._memory.region(position)
            arrays.append((parameters[position].name or f"args[{position}]", length, item))
        arrays += [(symbol.name, symbol.size, 0) for symbol in symbols(self.library)]
        dynamic = re.search(r"extern\s[^;]*?__shared__[^;]*?(\w+)\s*\[\s*\]", self.kernel.source.text)
        return [*arrays, (dynamic.group(1) if dynamic else "dynamic shared memory", self._shared_mem, 0)]

    def places(self, pcs) -> dict[int, tuple[str, int] | None]:
        """The source file and line of each code address."""
        unique = list(dict.fromkeys(pcs))
        offsets = [pc - self.answer["load_address"] for pc in unique]
        return dict(zip(unique, source_lines(self.library, offsets), strict=True))


@contextlib.contextmanager
def launch_in_child(
    kernel, library: Path, grid, block, args, values, shared_mem: int, *, cluster=(1, 1, 1), watch=NOBODY, threads=1, time_limit_s=None,
    l2_bytes=0, writers=False, at_rest=None,
) -> Iterator[RemoteLaunch]:
    """Launch `kernel`, compiled as `library`, on copies of its tensors. `at_rest`: of an early launch, the tensors that no kernel in flight uses; None:
    all. Raises LaunchError if it brings the child down."""
    memory = MemoryFile(args)
    try:
        request = child.Request(
            str(library), kernel.name, tuple(grid), tuple(block), shared_mem, [v.hex() for v in values],
            cluster=tuple(cluster), watch=watch, threads=threads, time_limit_s=time_limit_s, l2_bytes=l2_bytes, writers=writers,
        )  # fmt: skip
        for position in _tensor_positions(args, memory):
            request.pointers[position] = memory.address(position)
            if at_rest is not None and _storage(args[position]) not in map(_storage, at_rest):
                request.unsettled.append(len(request.regions))
            request.regions.append(memory.region(position))
        try:
            answer = child.call(request, memory.descriptor)
        except ChildDied as error:
            raise LaunchError(f"{kernel.name}: brought its process down ({error})") from None
        sys.stdout.write(answer["output"])
        yield RemoteLaunch(kernel, library, grid, block, args, memory, shared_mem, answer)
    finally:
        memory.close()


def _tensor_positions(args, memory: MemoryFile) -> list[int]:
    return [position for position in range(len(args)) if memory.address(position) is not None]


def _storage(tensor) -> int:
    return getattr(tensor, "tensor", tensor).untyped_storage().data_ptr()  # of a tensor map, its tensor's
