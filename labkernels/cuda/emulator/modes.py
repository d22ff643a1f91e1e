"""How launches on CPU tensors run: in this process, isolated in a child process, or watched by sanitizer or profiler."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from labkernels.cuda.emulator.counters import Profile
from labkernels.cuda.emulator.launch import FINISHED, threads
from labkernels.cuda.emulator.launch import run as run_here
from labkernels.cuda.emulator.profiler import profile
from labkernels.cuda.emulator.remote import launch_in_child
from labkernels.cuda.emulator.sanitizer import sanitize
from labkernels.cuda.emulator.toolchain import PROFILED, SANITIZED, Mode
from labkernels.cuda.emulator.writers import Trace
from labkernels.errors import LaunchError, SanitizerError

_mode: ContextVar[tuple[str, float | None]] = ContextVar("labkernels_emulator_mode", default=("direct", None))
_trace: ContextVar[Trace] = ContextVar("labkernels_emulator_trace")
_profiles: ContextVar[list[Profile]] = ContextVar("labkernels_emulator_profiles")


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
def tracing(time_limit_s: float | None = 30.0) -> Iterator[Trace]:
    """Inside, every kernel launched on CPU tensors is watched, and the Trace knows afterwards who wrote each element."""
    trace = Trace()
    token = _trace.set(trace)
    try:
        with _set_mode("traced", time_limit_s):
            yield trace
    finally:
        _trace.reset(token)


@contextlib.contextmanager
def profiling(time_limit_s: float | None = 60.0) -> Iterator[list[Profile]]:
    """Inside, every kernel launched on CPU tensors is counted too; the list has a Profile of each launch, in their order."""
    profiles: list[Profile] = []
    token = _profiles.set(profiles)
    try:
        with _set_mode("profiled", time_limit_s):
            yield profiles
    finally:
        _profiles.reset(token)


@contextlib.contextmanager
def _set_mode(mode: str, time_limit_s: float | None) -> Iterator[None]:
    token = _mode.set((mode, time_limit_s))
    try:
        yield
    finally:
        _mode.reset(token)


def compiled_as() -> Mode | None:
    """How a kernel must be compiled so that the surrounding context can watch it; None where nobody watches."""
    return {"sanitized": SANITIZED, "traced": SANITIZED, "profiled": PROFILED}.get(_mode.get()[0])


def run(kernel, grid, block, args, values, shared_mem: int, cluster=(1, 1, 1)) -> None:
    """Launch `kernel` (whose packed arguments are `values`) as the surrounding context asks."""
    mode, time_limit_s = _mode.get()
    if mode == "sanitized":
        report = sanitize(kernel, grid, block, args, shared_mem, cluster=cluster, time_limit_s=time_limit_s, write_back=True)
        if not report.clean:
            raise SanitizerError(report)
    elif mode == "traced":
        _trace.get().launch(kernel, grid, block, args, values, shared_mem, cluster, time_limit_s)
    elif mode == "profiled":
        _profiles.get().append(profile(kernel, grid, block, args, shared_mem, cluster=cluster, time_limit_s=time_limit_s, write_back=True))
    elif mode == "isolated":
        library = kernel.emulated.path
        with launch_in_child(
            kernel, library, grid, block, args, values, shared_mem, cluster=cluster, threads=threads(), time_limit_s=time_limit_s
        ) as launch:
            if launch.outcome != FINISHED:
                raise LaunchError(launch.answer["failure"])
            launch.write_back()
    else:
        run_here(kernel.emulated, grid, block, values, shared_mem, cluster=cluster)
