"""Launches in this process: packed arguments go to the runtime library, and what happened comes back as an exception or not."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence

from labkernels.cuda.emulator.compile import EmulatedKernel, load_runtime
from labkernels.cuda.emulator.toolchain import SHIM_DIR
from labkernels.cuda.source import INCLUDE_DIR
from labkernels.errors import LaunchError

FINISHED, FAILED, STOPPED, TIMEOUT, DEADLOCK, CRASHED = 1, 2, 3, 4, 5, 6
NOBODY, SANITIZER, PROFILER = 0, 1, 2  # who watches
STATIC_SHARED, MODULE, HIDDEN, UNSETTLED = 1, 2, 4, 8  # kinds of regions (shim/sanitizer.h)
_POLL_S = 0.05
_BYTES_BACK = (0, 4, 8, 16)
_ROWS = {  # functions of the runtime that give rows, and those that count them
    "lk_findings": "lk_finding_count",
    "lk_profile_lines": "lk_profile_line_count",
    "lk_profile_samples": "lk_profile_sample_count",
    "lk_profile_arrivals": "lk_profile_arrival_count",
}
_threads: int | None = None


class Region(ctypes.Structure):
    """Memory that a kernel may touch, for the sanitizer (shim/sanitizer.h)."""

    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64), ("kind", ctypes.c_uint32), ("item_bytes", ctypes.c_uint32)]


class _Request(ctypes.Structure):
    _fields_ = [
        ("call", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("tls_anchor", ctypes.c_void_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("cluster", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint64),
        ("workers", ctypes.c_uint32),
        ("watch", ctypes.c_uint32),
        ("regions", ctypes.POINTER(Region)),
        ("region_count", ctypes.c_uint64),
        ("l2_bytes", ctypes.c_uint64),
    ]


class _Failure(ctypes.Structure):
    _fields_ = [
        ("outcome", ctypes.c_int),
        ("block", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32 * 3),
        ("pc", ctypes.c_uint64),
        ("text", ctypes.c_char_p),
    ]


class Finding(ctypes.Structure):
    """What the sanitizer noticed, as the runtime tells it (shim/sanitizer.h)."""

    _fields_ = [
        ("kind", ctypes.c_int32),
        ("access", ctypes.c_int32),
        ("other_access", ctypes.c_int32),
        ("region", ctypes.c_int32),
        ("block", ctypes.c_uint32 * 3),
        ("other_block", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32),
        ("other_thread", ctypes.c_uint32),
        ("threads", ctypes.c_uint32 * 32),
        ("pc", ctypes.c_uint64),
        ("other_pc", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("bytes", ctypes.c_uint32),
        ("owner", ctypes.c_int32),
        ("text", ctypes.c_char * 184),
    ]


class LineCount(ctypes.Structure):
    """What the warps did at one place in the code (shim/profiler.h)."""

    _fields_ = [("pc", ctypes.c_uint64), ("kind", ctypes.c_uint32), ("access_bytes", ctypes.c_uint32)] + [
        (name, ctypes.c_uint64) for name in ("requests", "lanes", "bytes", "sectors", "wavefronts", "conflicts", "divergent")
    ]


class Sample(ctypes.Structure):
    """One request of a warp, lane by lane (shim/profiler.h)."""

    _fields_ = [("pc", ctypes.c_uint64)] + [(name, ctypes.c_uint32) for name in ("kind", "bytes", "active", "block", "warp")]
    _fields_ += [("array", ctypes.c_int32), ("low", ctypes.c_uint64), ("address", ctypes.c_uint64 * 32)]


class BarrierArrival(ctypes.Structure):
    """How many requests a warp had made when it came to a barrier (shim/profiler.h)."""

    _fields_ = [("block", ctypes.c_uint32), ("warp", ctypes.c_uint32), ("requests", ctypes.c_uint64)]


class Totals(ctypes.Structure):
    """Of the whole launch (shim/profiler.h)."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("loaded_bytes", "stored_bytes", "l2_hits", "l2_misses")]


def set_threads(count: int | None) -> None:
    """How many cores launches use; None: all of them."""
    global _threads
    if count is not None and count < 1:
        raise ValueError(f"set_threads: count is {count}, must be at least 1")
    _threads = count


def threads() -> int:
    return _threads or min(len(os.sched_getaffinity(0)), 32)


def run(
    kernel: EmulatedKernel, grid, block, values: Sequence[bytes], shared_mem: int = 0, *, cluster=(1, 1, 1), time_limit_s: float | None = None
) -> None:
    """Run a kernel on all cores of this machine and wait for it.

    `values` are the parameters' bytes. KeyboardInterrupt stops the kernel within about 10 ms. Raises LaunchError if a thread
    crashes, traps, fails an assert, waits for ever on others, or if `time_limit_s` passes.
    """
    with Launch(kernel, grid, block, values, shared_mem, cluster=cluster, workers=threads()) as launch:
        outcome = launch.wait(time_limit_s)
        sys.stdout.write(launch.output())
        if outcome != FINISHED:
            raise LaunchError(launch.failure(grid, block))


class Launch:
    """A launch under way. As a context manager it never leaves a thread behind."""

    def __init__(
        self, kernel, grid, block, values, shared_mem, *, cluster=(1, 1, 1), workers=1, watch=NOBODY, regions: Sequence[Region] = (), l2_bytes=0
    ):
        self._kernel = kernel
        self._runtime = _runtime()
        buffers = [ctypes.create_string_buffer(value, max(len(value), 1)) for value in values]
        pointers = (ctypes.c_void_p * max(len(buffers), 1))(*[ctypes.addressof(b) for b in buffers])
        region_array = (Region * max(len(regions), 1))(*regions)
        request = _Request(
            kernel.address("lk_call_kernel"), pointers, kernel.address("lk_tls_anchor"), tuple(grid), tuple(block), tuple(cluster),
            shared_mem, workers, watch, region_array, len(regions), l2_bytes,
        )  # fmt: skip
        self._keep = (buffers, pointers, region_array)
        self._handle = self._runtime.lk_start(ctypes.byref(request))

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *exc) -> None:
        if not self._runtime.lk_wait(self._handle, 0.0):
            self._runtime.lk_stop(self._handle, STOPPED)
            while not self._runtime.lk_wait(self._handle, _POLL_S):
                pass
        self._runtime.lk_free(self._handle)

    def wait(self, time_limit_s: float | None = None) -> int:
        """Wait for the end and give the outcome; a launch that takes longer than the limit is stopped."""
        waited = 0.0
        while not (outcome := self._runtime.lk_wait(self._handle, _POLL_S)):
            waited += _POLL_S
            if time_limit_s is not None and waited > time_limit_s:
                self._runtime.lk_stop(self._handle, TIMEOUT)
        return outcome

    def output(self) -> str:
        """What the kernel printed."""
        return self._runtime.lk_output(self._handle).decode(errors="replace")

    def failure(self, grid, block) -> str:
        """Why the launch ended early, in words."""
        failure = _Failure()
        self._runtime.lk_get_failure(self._handle, ctypes.byref(failure))
        text = (failure.text or b"stopped").decode(errors="replace")
        place = source_lines(self._kernel.path, [failure.pc - load_address(self._kernel)])[0] if failure.pc else None
        where = f"block {_index(failure.block, grid)}, thread {_index(failure.thread, block)}"
        return f"{self._kernel.name}: {text} ({where}{f', {place[0]} line {place[1]}' if place else ''})"

    def findings(self) -> list[Finding]:
        return self._rows("lk_findings", Finding)

    def writers(self, region: int, item_bytes: int, count: int) -> bytes:
        """For each of `count` items of a region two 32-bit numbers: the block and the thread that wrote it last, ~0 for none."""
        found = (ctypes.c_uint32 * (2 * count))()
        self._runtime.lk_writers(self._handle, region, item_bytes, count, found)
        return bytes(found)

    def profile(self) -> dict[str, list]:
        """What the profiler counted."""
        totals = Totals()
        self._runtime.lk_profile_totals(self._handle, ctypes.byref(totals))
        return {
            "lines": self._rows("lk_profile_lines", LineCount),
            "samples": self._rows("lk_profile_samples", Sample),
            "arrivals": self._rows("lk_profile_arrivals", BarrierArrival),
            "totals": [totals],
        }

    def _rows(self, rows: str, kind: type) -> list:
        length = getattr(self._runtime, _ROWS[rows])(self._handle)
        raw = ctypes.cast(getattr(self._runtime, rows)(self._handle), ctypes.POINTER(kind)) if length else []
        return [kind.from_buffer_copy(raw[i]) for i in range(length)]


def _index(index, shape) -> str:
    return str(index[0]) if shape[1] == shape[2] == 1 else "(" + ", ".join(str(i) for i in index) + ")"


def _runtime():
    runtime = load_runtime()
    if runtime.lk_start.restype is not ctypes.c_void_p:
        handle = ctypes.c_void_p
        runtime.lk_start.restype = handle
        runtime.lk_start.argtypes = (ctypes.POINTER(_Request),)
        runtime.lk_wait.argtypes = (handle, ctypes.c_double)
        runtime.lk_stop.argtypes = (handle, ctypes.c_int)
        runtime.lk_get_failure.argtypes = (handle, ctypes.POINTER(_Failure))
        runtime.lk_output.argtypes, runtime.lk_output.restype = (handle,), ctypes.c_char_p
        for rows, count in _ROWS.items():
            getattr(runtime, count).argtypes, getattr(runtime, count).restype = (handle,), ctypes.c_uint64
            getattr(runtime, rows).argtypes, getattr(runtime, rows).restype = (handle,), handle
        runtime.lk_writers.argtypes = (handle, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint32))
        runtime.lk_profile_totals.argtypes = (handle, ctypes.POINTER(Totals))
        runtime.lk_free.argtypes = (handle,)
    return runtime


def load_address(kernel: EmulatedKernel) -> int:
    """Where the kernel's library was loaded: addresses minus this are those of its debug information."""
    info = _DlInfo()
    ctypes.CDLL(None).dladdr(ctypes.c_void_p(kernel.address("lk_call_kernel")), ctypes.byref(info))
    return info.base


class _DlInfo(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("symbol", ctypes.c_char_p), ("address", ctypes.c_void_p)]


def source_lines(library, offsets: Sequence[int]) -> list[tuple[str, int] | None]:
    """The source file and line of each code address in `library`: the innermost one that is not the emulator's own, and rather
    the reader's than one of the package's device headers, where a function of theirs was inlined.

    Return addresses point behind a call, so the byte before is looked up; what the compiler gave no line takes that of the code
    a few bytes before.
    """
    if not offsets:
        return []
    asked = [max(offset - 1 - back, 0) for offset in offsets for back in _BYTES_BACK]
    command = ["addr2line", "-a", "-i", "-e", str(library), *map(hex, asked)]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return [None] * len(offsets)
    found: list[tuple[str, int] | None] = []
    for line in text.splitlines():
        if line.startswith("0x"):
            found.append(None)
            continue
        file, _, number = line.split(" (discriminator")[0].rpartition(":")
        file = file.removeprefix("./")
        if not number.isdigit() or number == "0" or file in ("??", "") or _is_ours(file):
            continue
        if found[-1] is None or (str(INCLUDE_DIR) in found[-1][0] and str(INCLUDE_DIR) not in file):
            found[-1] = (file, int(number))
    groups = [found[i : i + len(_BYTES_BACK)] for i in range(0, len(found), len(_BYTES_BACK))]
    return [next((place for place in group if place), None) for group in groups]


def _is_ours(file: str) -> bool:
    return str(SHIM_DIR) in file or file.startswith("/usr/") or "/nvidia/" in file or file.endswith("lk_entry")
