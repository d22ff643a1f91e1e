"""Launches in a child process, so that nothing a kernel does can hurt this one.

One child serves many launches. A request goes over a socket with the descriptor of a memory file that holds copies of the
tensors, each between red zones; the answer is what happened, and the memory file holds what the kernel wrote.
"""

from __future__ import annotations

import base64
import ctypes
import json
import mmap
import os
from dataclasses import asdict, dataclass, field

from labkernels.child_process import ChildProcess, serve_requests

RED_ZONE = 64 * 1024
GRACE_S = 20.0


@dataclass
class Request:
    """A launch: the library, the shape, the parameters' bytes, and where in the memory file each pointer leads."""

    library: str
    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_mem: int
    values: list[str]  # hexadecimal
    pointers: dict[int, int] = field(default_factory=dict)  # parameter -> offset in the memory file
    regions: list[tuple[int, int, int]] = field(default_factory=list)  # offset, bytes, bytes an item
    watch: int = 0  # one of launch.NOBODY, SANITIZER, PROFILER
    cluster: tuple[int, int, int] = (1, 1, 1)  # blocks that run together
    l2_bytes: int = 0
    unsettled: list[int] = field(default_factory=list)  # which of `regions` the kernel launched before may still be using
    writers: bool = False  # also tell who wrote each element of the tensors
    threads: int = 1
    time_limit_s: float | None = None


_child = ChildProcess("labkernels.cuda.emulator.child:serve")


def call(request: Request, memory: int) -> dict:
    """Serve `request` in the child; `memory` is the descriptor of the memory file. Raises ChildDied, KeyboardInterrupt."""
    limit = None if request.time_limit_s is None else request.time_limit_s + GRACE_S
    with _child.lock:
        answer = json.loads(_child.call(json.dumps(asdict(request)).encode(), [memory], limit))
        if answer["outcome"] != 1:
            _child.stop()  # its memory may be damaged
    return answer


# ---- in the child ---------------------------------------------------------------------------------------------------


def serve() -> None:
    """Launch what is asked for, until the parent hangs up."""
    serve_requests(_serve_one)


def _serve_one(message: bytes, descriptors: list[int]) -> bytes:
    with open(descriptors[0], "r+b", buffering=0) as file:
        return json.dumps(_launch(Request(**json.loads(message)), file)).encode()


def _launch(request: Request, file) -> dict:
    from labkernels.cuda.emulator.compile import load
    from labkernels.cuda.emulator.launch import HIDDEN, MODULE, PROFILER, STATIC_SHARED, UNSETTLED, Launch, Region, load_address
    from labkernels.cuda.emulator.symbols import symbols

    kernel = load(request.library, request.name)
    size = os.fstat(file.fileno()).st_size
    memory = mmap.mmap(file.fileno(), size)
    view = ctypes.c_char.from_buffer(memory)
    base = ctypes.addressof(view)
    values = [bytes.fromhex(v) for v in request.values]
    for position, offset in request.pointers.items():
        values[int(position)] = (base + offset).to_bytes(8, "little") + values[int(position)][8:]  # a tensor map begins with its address
    regions = [
        Region(base + offset, base + offset + length, UNSETTLED if number in request.unsettled else 0, item)
        for number, (offset, length, item) in enumerate(request.regions)
    ]
    loaded_at = load_address(kernel)
    for symbol in symbols(request.library) if request.watch else ():
        low = symbol.low if symbol.shared else loaded_at + symbol.low
        kind = STATIC_SHARED if symbol.shared else MODULE
        regions.append(Region(low % 2**64, (low + symbol.size) % 2**64, kind | (HIDDEN if symbol.hidden else 0), 4))
    with Launch(kernel, request.grid, request.block, values, request.shared_mem, cluster=request.cluster, workers=request.threads,
                watch=request.watch, regions=regions, l2_bytes=request.l2_bytes) as launch:  # fmt: skip
        outcome = launch.wait(request.time_limit_s)
        failure = launch.failure(request.grid, request.block) if outcome != 1 else None
        answer = {"outcome": outcome, "failure": failure, "output": launch.output(), "load_address": loaded_at, "findings": []}
        answer["findings"] = [as_json(finding) for finding in launch.findings()]
        if request.writers:
            sizes = [(item, length // item) for _, length, item in request.regions]
            found = [launch.writers(region, *size) for region, size in enumerate(sizes)]
            answer["writers"] = [base64.b64encode(writers).decode() for writers in found]
        if request.watch == PROFILER:
            answer["profile"] = {name: [as_json(row) for row in rows] for name, rows in launch.profile().items()}
    del view
    memory.close()
    return answer


def as_json(row: ctypes.Structure) -> dict:
    """A row of the runtime's as plain values."""
    fields = {name: getattr(row, name) for name, *_ in row._fields_}
    return {k: list(v) if isinstance(v, ctypes.Array) else v.decode() if isinstance(v, bytes) else v for k, v in fields.items()}
