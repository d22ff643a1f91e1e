"""What a compiled kernel needs of a GPU, read from the compiler's report: on any machine, for any architecture."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass

from labkernels.cuda.compile import Cubin
from labkernels.cuda.occupancy import Occupancy, occupancy
from labkernels.errors import ToolchainError

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_FUNCTION = re.compile(r"Function properties for '?(\w+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Resources:
    """The registers and memory of one kernel on one architecture.

    Registers are per thread, of 255. `stack_bytes` is local memory per thread: arrays that are indexed at run time, and spills.
    `spill_store_bytes` and `spill_load_bytes` are what a thread moves because its registers were too few. `shared_bytes` is static
    shared memory per block. `constant_bytes` are the source's `__constant__` variables. `barriers` is per block, of 16.
    """

    kernel: str
    arch: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    constant_bytes: int
    barriers: int

    def occupancy(self, block: int | tuple[int, ...], shared_mem: int = 0) -> Occupancy:
        """How many blocks of `block` threads, with `shared_mem` bytes of dynamic shared memory, share a multiprocessor.

        Raises ArgumentError for a block of more than 1024 threads.
        """
        threads = math.prod(block) if isinstance(block, tuple | list) else block
        return occupancy(self.arch, threads, self.registers, self.shared_bytes + shared_mem, self.barriers)

    def __repr__(self) -> str:
        return f"{self.kernel} on {self.arch}: " + ", ".join(f"{value} {what}" for what, value in self._rows())

    def _repr_html_(self) -> str:
        head = f"<tr><th colspan=2 style='text-align:left'>{_escape(self.kernel)} on {self.arch}</th></tr>"
        rows = (f"<tr><td style='text-align:left'>{what}</td><td>{value}</td></tr>" for what, value in self._rows())
        return f"<table>{head}{''.join(rows)}</table>"

    def _rows(self) -> list[tuple[str, int]]:
        return [
            ("registers a thread", self.registers),
            ("bytes static shared memory", self.shared_bytes),
            ("bytes stack a thread", self.stack_bytes),
            ("bytes spilled", self.spill_store_bytes),
            ("bytes of spills loaded", self.spill_load_bytes),
            ("bytes constants", self.constant_bytes),
        ]


def read_resources(cubin: Cubin, kernel: str) -> Resources:
    """The resources of the kernel in `cubin`, shown under the name `kernel`. Raises ToolchainError if ptxas reported none."""
    entry = function = None
    stack, registers, barriers, shared = (0, 0, 0), None, 0, 0
    for line in cubin.log.splitlines():
        if match := _ENTRY.search(line):
            entry = match.group(1)
        elif match := _FUNCTION.search(line):
            function = match.group(1)
        elif entry != cubin.symbol:
            continue
        elif (match := _STACK.search(line)) and function == cubin.symbol:
            stack = tuple(int(n) for n in match.groups())
        elif match := _USED.search(line):
            registers = int(match.group(1))
            barriers = _number(r"used (\d+) barriers", line)
            shared = _number(r"(\d+)(?:\+\d+)? bytes smem", line)
    if registers is None:
        raise ToolchainError(f"{kernel}: ptxas reports no registers for {cubin.symbol}; its log:\n{cubin.log}")
    constants = section_sizes(cubin.path.read_bytes()).get(".nv.constant3", 0)
    return Resources(
        kernel=kernel,
        arch=cubin.arch,
        registers=registers,
        shared_bytes=shared,
        stack_bytes=stack[0],
        spill_store_bytes=stack[1],
        spill_load_bytes=stack[2],
        constant_bytes=constants,
        barriers=barriers,
    )


def section_sizes(elf: bytes) -> dict[str, int]:
    """The sections of a 64-bit ELF file, such as a cubin, and their sizes in bytes."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", elf, table + i * entry_size) for i in range(count)]
    names = sections[names_index][4]
    return {elf[names + s[0] : elf.index(b"\0", names + s[0])].decode(): s[5] for s in sections}


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match.group(1)) if match else 0


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
