"""The simulator's blocks: threads that wake each other, and an end to every launch.

Threads that wait for each other for ever are found; a launch that fails or is interrupted leaves no thread behind.
"""

from __future__ import annotations

import ctypes
import inspect
import threading
from collections.abc import Callable

import numpy as np
from numba.cuda.simulator import kernel as simulator
from numba.cuda.simulator.cudadrv.devicearray import FakeWithinKernelCUDAArray

from labkernels.cuda.numba_strict.arrays import Array


class _Stopped(SystemExit):
    """Ends a thread whose block has failed, without a word. No `except Exception` of a kernel catches it."""


class Thread(simulator.BlockThread):
    """A CUDA thread. It waits by taking its own lock, which whoever lets it go on releases."""

    def __init__(self, *args):
        super().__init__(*args)
        self.turn = threading.Lock()
        self.turn.acquire()
        self.waits_for: str | None = None
        self.answer = None

    def run(self) -> None:
        try:
            threading.Thread.run(self)
        except _Stopped:
            pass
        except Exception as error:
            text = f"{self}: {error}" if str(error) else str(self)
            self._manager.fail(_same_kind(error, text).with_traceback(error.__traceback__))
        finally:
            self._manager.ends(self)

    def syncthreads(self) -> None:
        self._manager.wait(self, "syncthreads", None, None)

    def __str__(self) -> str:
        return f"thread {_place(self.threadIdx)} of block {_place(self.blockIdx)}"


class Block(simulator.BlockManager):
    """Runs a block. Threads wake each other, so that a launch costs what its threads do and no polling beside them."""

    def run(self, grid_point, *args) -> None:
        names = list(inspect.signature(self._f).parameters)
        args = [Array(a._item._ary, name) if _is_array(a) else a for a, name in zip(args, names)]
        shared = simulator._get_kernel_context().shared
        shared._allocations.clear()
        self._lock, self._ended = threading.RLock(), threading.Event()
        self._gathered: dict[tuple, dict[int, tuple[Thread, object]]] = {}  # who waits where: threads by lane or number, and what they bring
        self._error: BaseException | None = None
        points = sorted(np.ndindex(*self._block_dim), key=lambda point: point[::-1])
        self._alive = {t.thread_id: t for t in (Thread(lambda: self._f(*args), self, grid_point, p, self._debug) for p in points)}
        threads = list(self._alive.values())
        try:
            for thread in threads:
                thread.start()
            self._ended.wait()
        except BaseException as error:  # KeyboardInterrupt
            self.fail(error)
            for thread in threads:
                if thread.ident is not None:
                    _stop(thread)
            raise
        if self._error is not None:
            for thread in threads:
                _stop(thread)
            raise self._error

    def wait(self, thread: Thread, what: str, mask: int | None, brings, answer: Callable[[dict], dict] | None = None):
        """Wait until all come: the block's threads, or the lanes in `mask`. `answer` makes of what each lane brings what each is given."""
        warp, lane = (None, thread.thread_id) if mask is None else divmod(thread.thread_id, 32)
        if mask is not None and not mask >> lane & 1:
            raise RuntimeError(f"{what}: lane {lane} calls it, and is not in its mask {mask:#010x}")
        place = what, warp, mask, answer
        with self._lock:
            if self._error is not None:
                raise _Stopped
            self._gathered.setdefault(place, {})[lane] = thread, brings
            thread.waits_for = what if mask is None else f"{what}, mask {mask:#010x}"
            self._let_go_on()
        thread.turn.acquire()
        if self._error is not None:
            raise _Stopped
        return thread.answer

    def ends(self, thread: Thread) -> None:
        with self._lock:
            self._alive.pop(thread.thread_id, None)
            if self._alive and self._error is None:
                self._let_go_on()
            elif not self._alive:
                self._ended.set()

    def fail(self, error: BaseException) -> None:
        """Remember the first error, and wake everybody to end."""
        with self._lock:
            if self._error is None:
                self._error = error
                for gathered in self._gathered.values():
                    for thread, _ in gathered.values():
                        thread.turn.release()
                self._gathered.clear()
                self._ended.set()

    def _let_go_on(self) -> None:
        for place in list(self._gathered):
            gathered = self._gathered[place]
            _, warp, mask, answer = place
            needed = len(self._alive) if mask is None else sum(1 for lane in range(32) if mask >> lane & 1 and 32 * warp + lane in self._alive)
            if len(gathered) == needed:
                del self._gathered[place]
                answers = answer({lane: brings for lane, (_, brings) in gathered.items()}) if answer else {}
                for lane, (thread, _) in gathered.items():
                    thread.waits_for, thread.answer = None, answers.get(lane)
                    thread.turn.release()
        waiting = [thread for gathered in self._gathered.values() for thread, _ in gathered.values()]
        if waiting and len(waiting) == len(self._alive):
            first = {thread.waits_for: thread for thread in sorted(waiting, key=lambda thread: -thread.thread_id)}
            self.fail(RuntimeError("threads wait for each other for ever: " + "; ".join(f"{t} in {what}" for what, t in reversed(first.items()))))


def _stop(thread: threading.Thread) -> None:
    """End a thread that runs Python, at its next instruction."""
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Stopped))


def _is_array(argument) -> bool:
    return isinstance(argument, FakeWithinKernelCUDAArray) and isinstance(argument._item._ary, np.ndarray)


def _same_kind(error: Exception, text: str) -> Exception:
    try:
        return type(error)(text)
    except TypeError:  # its constructor wants more than a text
        return RuntimeError(f"{type(error).__name__}: {text}")


def _place(index) -> str:
    """33, or (33, 2) where another axis counts too."""
    axes = list(index)
    while len(axes) > 1 and axes[-1] == 0:
        axes.pop()
    return str(axes[0]) if len(axes) == 1 else str(tuple(axes))
