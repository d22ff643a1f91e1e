"""Launches of a `Kernel` on CPU tensors: in this process, in a child process, or watched by the sanitizer."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from contextvars import ContextVar

from labkernels.cuda.emulator import child
from labkernels.cuda.emulator.compile import library
from labkernels.cuda.emulator.findings import Describer, Finding, SanitizerReport
from labkernels.cuda.emulator.launch import FAILED, FINISHED, TIMEOUT, source_lines, threads
from labkernels.cuda.emulator.launch import run as run_here
from labkernels.cuda.emulator.memory import MemoryFile
from labkernels.cuda.emulator.symbols import symbols
from labkernels.errors import LaunchError, SanitizerError

_mode: ContextVar[tuple[str, float | None]] = ContextVar("labkernels_emulator_mode", default=("direct", None))


@contextlib.contextmanager
def sanitizing(time_limit_s: float = 30.0) -> Iterator[None]:
    """Inside, every kernel launched on CPU tensors runs under the sanitizer; one with findings raises SanitizerError."""
    with _set_mode("sanitized", time_limit_s):
        yield


@contextlib.contextmanager
def isolated(time_limit_s: float | None = None) -> Iterator[None]:
    """Inside, every kernel launched on CPU tensors runs in a child process: a crash there raises LaunchError here."""
    with _set_mode("isolated", time_limit_s):
        yield


@contextlib.contextmanager
def _set_mode(mode: str, time_limit_s: float | None) -> Iterator[None]:
    token = _mode.set((mode, time_limit_s))
    try:
        yield
    finally:
        _mode.reset(token)


def run(kernel, grid, block, args, values, shared_mem: int) -> None:
    """Launch `kernel` (whose packed arguments are `values`) as the surrounding context asks."""
    mode, time_limit_s = _mode.get()
    if mode == "sanitized":
        report = sanitize(kernel, grid, block, args, shared_mem, time_limit_s=time_limit_s, write_back=True)
        if not report.clean:
            raise SanitizerError(report)
    elif mode == "isolated":
        _run_isolated(kernel, grid, block, args, values, shared_mem, time_limit_s)
    else:
        run_here(kernel.emulated, grid, block, values, shared_mem)


def sanitize(kernel, grid, block, args, shared_mem: int = 0, *, time_limit_s: float = 10.0, write_back: bool = False) -> SanitizerReport:
    """Run `kernel` once in the emulator, watching every access, and report what is wrong.

    Takes what a launch takes; tensors must be on the CPU and are left as they were unless `write_back`. Runs in a child process,
    so that nothing the kernel does can hurt this one, on one core and in a fixed order: the same report every time. Raises
    CompileError, ArgumentError, and LaunchError where the kernel itself gave up (assert, __trap, integer division by zero).
    """
    grid, block, values = kernel.prepare(grid, block, args, shared_mem)
    path = library(kernel.source, kernel.name, instrumented=True)
    with _request(kernel, path, grid, block, args, values, shared_mem) as (request, memory):
        request.sanitize = True
        request.time_limit_s = time_limit_s
        answer = _call(kernel, request, memory)
        if write_back and answer["outcome"] == FINISHED:
            memory.write_back()
    arrays = _arrays(kernel, path, args, memory, shared_mem)
    rows = answer["findings"]
    offsets = [pc - answer["load_address"] for row in rows for pc in (row["pc"], row["other_pc"])]
    places = dict(zip(offsets, source_lines(path, offsets), strict=True))
    gave_up = next((row["text"] for row in rows if row["text"].startswith("integer division")), None)
    if gave_up:
        raise LaunchError(f"{kernel.name}: {gave_up}")
    describer = Describer(kernel.name, kernel.source, grid, block, arrays, lambda pc: places.get(pc - answer["load_address"]))
    findings = [finding for row in rows if (finding := describer.describe(row)) is not None]
    if answer["outcome"] == FAILED or (answer["outcome"] not in (FINISHED, TIMEOUT) and not findings):
        raise LaunchError(answer["failure"])
    return SanitizerReport(kernel.name, _most_telling(findings), kernel.source)


def _most_telling(findings: list[Finding]) -> list[Finding]:
    """Findings of one kind at one line are one mistake: the first of each. Who reads too early also reads the unwritten: a race."""
    raced = {finding.array for finding in findings if finding.kind == "race"}
    kept: dict[tuple, Finding] = {}
    for finding in findings:
        if finding.kind != "uninitialized" or finding.array not in raced:
            kept.setdefault((finding.kind, finding.file, finding.line, finding.array), finding)
    return list(kept.values())


def _run_isolated(kernel, grid, block, args, values, shared_mem, time_limit_s) -> None:
    path = kernel.emulated.path
    with _request(kernel, path, grid, block, args, values, shared_mem) as (request, memory):
        request.threads = threads()
        request.time_limit_s = time_limit_s
        answer = _call(kernel, request, memory)
        if answer["outcome"] != FINISHED:
            raise LaunchError(answer["failure"])
        memory.write_back()


@contextlib.contextmanager
def _request(kernel, path, grid, block, args, values, shared_mem):
    memory = MemoryFile(args)
    try:
        request = child.Request(str(path), kernel.name, tuple(grid), tuple(block), shared_mem, [v.hex() for v in values])
        for position in _tensor_positions(args, memory):
            request.pointers[position] = memory.address(position)
            request.regions.append(memory.region(position))
        yield request, memory
    finally:
        memory.close()


def _tensor_positions(args, memory: MemoryFile) -> list[int]:
    return [position for position in range(len(args)) if memory.address(position) is not None]


def _call(kernel, request: child.Request, memory: MemoryFile) -> dict:
    try:
        answer = child.call(request, memory.descriptor)
    except child.ChildDied as error:
        raise LaunchError(f"{kernel.name}: brought its process down ({error})") from None
    sys.stdout.write(answer["output"])
    return answer


def _arrays(kernel, path, args, memory: MemoryFile, shared_mem: int) -> list[tuple[str, int, int]]:
    """Name, bytes and bytes an element (0: as accessed) of the regions, in the order in which the child lists them."""
    parameters = kernel.signature
    arrays = []
    for position in _tensor_positions(args, memory):
        _, length, item = memory.region(position)
        arrays.append((parameters[position].name or f"args[{position}]", length, item))
    arrays += [(symbol.name, symbol.size, 0) for symbol in symbols(path)]
    dynamic = re.search(r"extern\s[^;]*?__shared__[^;]*?(\w+)\s*\[\s*\]", kernel.source.text)
    return [*arrays, (dynamic.group(1) if dynamic else "dynamic shared memory", shared_mem, 0)]
