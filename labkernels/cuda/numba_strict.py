"""What Numba's simulator lacks: indices that must lie inside their array, operations of a warp, and an end to every launch.

`install()` gives it to the simulator, once:

- Every index of a device, shared or local array is checked, and -1 is outside: IndexError names array, index, thread and block.
- `shfl_sync` and its kin, votes, matches and `syncwarp` work among the 32 threads of a warp.
- Shared and local arrays begin as NaN (integers as their smallest number), as on a GPU they begin as anything.
- Threads that wait for each other for ever raise RuntimeError; a launch that is interrupted, or fails, leaves no thread behind.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import linecache
import re
import sys
import threading
from collections.abc import Callable

import numpy as np
from numba.cuda import types
from numba.cuda.np import numpy_support
from numba.cuda.simulator import kernel as simulator
from numba.cuda.simulator import kernelapi
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray, FakeShape, FakeWithinKernelCUDAArray

FULL_WARP = 0xFFFFFFFF


def install() -> None:
    """Make the simulator strict; calling it again changes nothing."""
    simulator.BlockManager = _Block
    kernelapi.FakeCUDALocal.array = _local_array
    kernelapi.FakeCUDAShared.array = _shared_array
    for operation in (_shfl_sync, _shfl_up_sync, _shfl_down_sync, _shfl_xor_sync, _syncwarp, _ballot_sync, _any_sync, _all_sync, _eq_sync,
                      _match_any_sync, _match_all_sync):  # fmt: skip
        setattr(kernelapi.FakeCUDAModule, operation.__name__.removeprefix("_"), staticmethod(operation))
    kernelapi.FakeCUDAModule.lanemask_lt = staticmethod(lambda: (1 << threading.current_thread().thread_id % 32) - 1)


# ---- arrays -------------------------------------------------------------------------------------------------------------


class _Array(FakeWithinKernelCUDAArray):
    """An array as a kernel sees it, each index compared with the shape first."""

    def __init__(self, array: np.ndarray, name: str):
        super().__init__(FakeCUDAArray(array))
        self.__dict__.update(_array=array, _name=name, _lengths=array.shape, shape=FakeShape(array.shape), size=array.size, ndim=array.ndim)

    def __getitem__(self, index):
        try:
            value = self._array[index] if (min(index) if type(index) is tuple else index) >= 0 else self._slowly(index)
        except (IndexError, TypeError):  # TypeError: slices, and names of a record's fields
            value = self._slowly(index)
        if isinstance(value, np.ndarray):
            return _Array(value, self._name)
        return FakeWithinKernelCUDAArray(FakeCUDAArray(value)) if isinstance(value, np.void) else value

    def __setitem__(self, index, value):
        self._check(index)
        self._array[index] = value._array if isinstance(value, _Array) else value

    def _slowly(self, index):
        self._check(index)
        return self._array[index]

    def __getattr__(self, attribute: str):
        value = super().__getattr__(attribute)
        return _Array(value._item._ary, f"{self._name}.{attribute}") if isinstance(value, FakeWithinKernelCUDAArray) else value

    def reshape(self, *shape):
        return _Array(self._array.reshape(*shape), self._name)

    def _check(self, index) -> None:
        lengths = self._lengths
        if type(index) is not tuple:
            index = (index,)
        if len(index) > len(lengths):
            raise IndexError(f"{self._name}{_brackets(index)}: {self._name} has {len(lengths)} axes, the index {len(index)}")
        for axis, (i, length) in enumerate(zip(index, lengths)):
            try:
                inside = 0 <= i < length
            except TypeError:  # a slice, or the name of a record's field
                continue
            if inside is False or inside is np.False_:
                where = f" along axis {axis}" if len(lengths) > 1 else ""
                raise IndexError(f"{self._name}{_brackets(index)} is out of bounds: indices{where} are 0 to {length - 1}")


def _brackets(index: tuple) -> str:
    return f"[{', '.join(str(i) for i in index)}]"


def _local_array(self, shape, dtype, alignment=None) -> _Array:
    return _Array(_unwritten(shape, dtype), _assigned_name(sys._getframe(1), "local array"))


def _shared_array(self, shape, dtype, alignment=None) -> _Array:
    """One array a block for each call in the source, and all dynamic ones (shape 0) in the same memory."""
    caller = sys._getframe(1)
    name = _assigned_name(caller, "shared array")
    if shape == 0:
        dtype = _numpy_dtype(dtype)
        return _Array(np.frombuffer(self._dynshared.data, dtype=dtype, count=self._dynshared_size // dtype.itemsize), name)
    place = caller.f_code, caller.f_lasti
    found = self._allocations.get(place)
    return _Array(self._allocations.setdefault(place, _unwritten(shape, dtype)) if found is None else found, name)


def _unwritten(shape, dtype) -> np.ndarray:
    array = np.empty(shape, _numpy_dtype(dtype))
    if array.dtype.names is None and array.dtype.kind in "fciu":
        array.fill(_poison(array.dtype))
    return array


def _poison(dtype: np.dtype):
    return np.nan if dtype.kind in "fc" else np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max


def _numpy_dtype(dtype) -> np.dtype:
    return numpy_support.as_dtype(dtype) if isinstance(dtype, types.Type) else np.dtype(dtype)


def _assigned_name(frame, otherwise: str) -> str:
    """`tile` for a call in `tile = cuda.shared.array(...)`."""
    return _name_in(linecache.getline(frame.f_code.co_filename, frame.f_lineno)) or otherwise


@functools.lru_cache(1024)
def _name_in(line: str) -> str | None:
    match = re.match(r"\s*(\w+)\s*=[^=]", line)
    return match.group(1) if match else None


# ---- blocks -------------------------------------------------------------------------------------------------------------


class _Stopped(SystemExit):
    """Ends a thread whose block has failed, without a word. No `except Exception` of a kernel catches it."""


class _Thread(simulator.BlockThread):
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


class _Block(simulator.BlockManager):
    """Runs a block. Threads wake each other, so that a launch costs what its threads do and no polling beside them."""

    def run(self, grid_point, *args) -> None:
        names = list(inspect.signature(self._f).parameters)
        args = [_Array(a._item._ary, name) if _is_array(a) else a for a, name in zip(args, names)]
        shared = simulator._get_kernel_context().shared
        shared._allocations.clear()
        self._lock, self._ended = threading.RLock(), threading.Event()
        self._gathered: dict[tuple, dict[int, tuple[_Thread, object]]] = {}  # who waits where: threads by lane or number, and what they bring
        self._error: BaseException | None = None
        points = sorted(np.ndindex(*self._block_dim), key=lambda point: point[::-1])
        self._alive = {t.thread_id: t for t in (_Thread(lambda: self._f(*args), self, grid_point, p, self._debug) for p in points)}
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

    def wait(self, thread: _Thread, what: str, mask: int | None, brings, answer: Callable[[dict], dict] | None = None):
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

    def ends(self, thread: _Thread) -> None:
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


# ---- warps --------------------------------------------------------------------------------------------------------------


def _among_lanes(what: str, mask: int, brings, answer: Callable[[dict], dict] | None):
    thread = threading.current_thread()
    return thread._manager.wait(thread, what, int(mask) & FULL_WARP, brings, answer)


def _shuffle(source: Callable[[int, int], int]):
    """What makes of {lane: (value, operand)} each lane's result. Outside the warp a lane keeps its own value, as on a GPU."""

    def answer(lanes: dict) -> dict:
        results = {}
        for lane, (value, operand) in lanes.items():
            other = source(lane, int(operand))
            results[lane] = value if not 0 <= other < 32 else lanes[other][0] if other in lanes else _nobodys(value)
        return results

    return answer


def _nobodys(value):
    """What a shuffle reads from a lane that takes no part: a GPU gives anything, this shows."""
    return type(value)(_poison(np.asarray(value).dtype))


_FROM, _UP = _shuffle(lambda lane, source: source % 32), _shuffle(lambda lane, delta: lane - delta)
_DOWN, _XOR = _shuffle(lambda lane, delta: lane + delta), _shuffle(lambda lane, bits: lane ^ bits)


def _shfl_sync(mask, value, src_lane):
    return _among_lanes("shfl_sync", mask, (value, src_lane), _FROM)


def _shfl_up_sync(mask, value, delta):
    return _among_lanes("shfl_up_sync", mask, (value, delta), _UP)


def _shfl_down_sync(mask, value, delta):
    return _among_lanes("shfl_down_sync", mask, (value, delta), _DOWN)


def _shfl_xor_sync(mask, value, lane_mask):
    return _among_lanes("shfl_xor_sync", mask, (value, lane_mask), _XOR)


def _syncwarp(mask=FULL_WARP) -> None:
    _among_lanes("syncwarp", mask, None, None)


def _all_told(decide: Callable[[dict], object]):
    return lambda lanes: dict.fromkeys(lanes, decide(lanes))


def _lanes_where(lanes: dict, is_so: Callable) -> int:
    return sum(1 << lane for lane, value in lanes.items() if is_so(value))


_BALLOT, _ANY = _all_told(lambda lanes: _lanes_where(lanes, bool)), _all_told(lambda lanes: any(lanes.values()))
_ALL, _EQ = _all_told(lambda lanes: all(lanes.values())), _all_told(lambda lanes: len({bool(value) for value in lanes.values()}) == 1)


def _ballot_sync(mask, predicate) -> int:
    return _among_lanes("ballot_sync", mask, predicate, _BALLOT)


def _any_sync(mask, predicate) -> bool:
    return _among_lanes("any_sync", mask, predicate, _ANY)


def _all_sync(mask, predicate) -> bool:
    return _among_lanes("all_sync", mask, predicate, _ALL)


def _eq_sync(mask, predicate) -> bool:
    return _among_lanes("eq_sync", mask, predicate, _EQ)


def _match_any(lanes: dict) -> dict:
    return {lane: _lanes_where(lanes, lambda other, value=value: other == value) for lane, value in lanes.items()}


def _match_all(lanes: dict) -> dict:
    same = len(set(lanes.values())) == 1
    return dict.fromkeys(lanes, (_lanes_where(lanes, lambda value: True) if same else 0, same))


def _match_any_sync(mask, value) -> int:
    return _among_lanes("match_any_sync", mask, value, _match_any)


def _match_all_sync(mask, value) -> tuple[int, bool]:
    return _among_lanes("match_all_sync", mask, value, _match_all)
