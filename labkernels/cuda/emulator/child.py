"""Launches in a child process, so that nothing a kernel does can hurt this one.

One child serves many launches. A request goes over a socket with the descriptor of a memory file that holds copies of the
tensors, each between red zones; the answer is what happened, and the memory file holds what the kernel wrote.
"""

from __future__ import annotations

import array
import atexit
import base64
import contextlib
import ctypes
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field

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
    l2_bytes: int = 0
    writers: bool = False  # also tell who wrote each element of the tensors
    threads: int = 1
    time_limit_s: float | None = None


class ChildDied(Exception):
    """The child process ended without an answer."""


_lock = threading.Lock()
_child: tuple[subprocess.Popen, socket.socket] | None = None


def call(request: Request, memory: int) -> dict:
    """Serve `request` in the child; `memory` is the descriptor of the memory file. Raises ChildDied, KeyboardInterrupt."""
    with _lock:
        try:
            _, connection = _running_child()
            _send(connection, asdict(request), [memory])
            limit = None if request.time_limit_s is None else request.time_limit_s + GRACE_S
            connection.settimeout(limit)
            answer, _ = _receive(connection)
        except (EOFError, OSError) as error:  # a timeout is an OSError too
            stop()
            raise ChildDied(str(error) or "the kernel's process ended") from error
        except BaseException:
            stop()
            raise
        if answer["outcome"] != 1:
            stop()  # its memory may be damaged
        return answer


def stop() -> None:
    """End the child, if there is one."""
    global _child
    if _child is not None:
        process, connection = _child
        _child = None
        connection.close()
        process.kill()
        process.wait()


def _running_child() -> tuple[subprocess.Popen, socket.socket]:
    global _child
    if _child is None or _child[0].poll() is not None:
        stop()
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
        command = [sys.executable, "-c", "from labkernels.cuda.emulator import child; child.serve()", str(theirs.fileno())]
        process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, start_new_session=True, close_fds=True
        )
        theirs.close()
        _child = (process, ours)
    return _child


atexit.register(stop)
os.register_at_fork(after_in_child=lambda: globals().update(_child=None))


def _send(connection: socket.socket, message: dict, descriptors: list[int] = ()) -> None:
    data = json.dumps(message).encode()
    header = len(data).to_bytes(8, "little")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([header], rights)
    connection.sendall(data)


def _receive(connection: socket.socket) -> tuple[dict, list[int]]:
    header, descriptors, _, _ = socket.recv_fds(connection, 8, 1)
    if len(header) < 8:
        raise EOFError
    length, data = int.from_bytes(header, "little"), b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise EOFError
        data += part
    return json.loads(data), list(descriptors)


# ---- in the child ---------------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer requests from the socket that the command line names, until the parent hangs up."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive the parent
    while True:
        try:
            message, descriptors = _receive(connection)
        except (EOFError, OSError):
            return
        with open(descriptors[0], "r+b", buffering=0) as file:
            _send(connection, _launch(Request(**message), file))


def _launch(request: Request, file) -> dict:
    from labkernels.cuda.emulator.compile import load
    from labkernels.cuda.emulator.launch import HIDDEN, MODULE, PROFILER, STATIC_SHARED, Launch, Region, load_address
    from labkernels.cuda.emulator.symbols import symbols

    kernel = load(request.library, request.name)
    size = os.fstat(file.fileno()).st_size
    memory = mmap.mmap(file.fileno(), size)
    view = ctypes.c_char.from_buffer(memory)
    base = ctypes.addressof(view)
    values = [bytes.fromhex(v) for v in request.values]
    for position, offset in request.pointers.items():
        values[int(position)] = (base + offset).to_bytes(8, "little") + values[int(position)][8:]  # a tensor map begins with its address
    regions = [Region(base + offset, base + offset + length, 0, item) for offset, length, item in request.regions]
    loaded_at = load_address(kernel)
    for symbol in symbols(request.library) if request.watch else ():
        low = symbol.low if symbol.shared else loaded_at + symbol.low
        kind = STATIC_SHARED if symbol.shared else MODULE
        regions.append(Region(low % 2**64, (low + symbol.size) % 2**64, kind | (HIDDEN if symbol.hidden else 0), 4))
    with Launch(kernel, request.grid, request.block, values, request.shared_mem, workers=request.threads,
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
