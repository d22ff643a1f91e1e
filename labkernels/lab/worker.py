"""A second Python, for what may hang a GPU or bring its process down: a function called there cannot harm this process.

A kernel that runs cannot be called back, and an address that is not its own ends CUDA for the whole process; only ending the process helps.
The second one has a CUDA context of its own, is warm between calls, and is ended when it does not answer in time, dies, or the call is
interrupted. (A fork of this process would know the notebook's functions already, but cannot use CUDA once this one has.)
"""

from __future__ import annotations

import pickle
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cloudpickle
import torch

from labkernels.child_process import START_S, ChildDied, ChildProcess, NoAnswer, serve_requests
from labkernels.cuda import gpu
from labkernels.errors import LabKernelsError, LaunchError
from labkernels.lab.parcel import CannotBeSent, Surroundings, pack

__all__ = ["CannotBeSent", "ChildDied", "NoAnswer", "Worker", "worker"]

_INSTALLED = tuple(str(Path(sysconfig.get_path(name))) for name in ("stdlib", "purelib", "platlib"))


class Worker:
    """Calls functions in the second Python, for one session at a time."""

    def __init__(self):
        self._child = ChildProcess("labkernels.lab.worker:serve", relay=True)
        self._started = 0.0
        self._device = "cpu"

    @contextmanager
    def session(self, device: str) -> Iterator[Worker]:
        """Inside, the second Python works in the same folder, knows the same cells, and has its own context on `device`, "cpu" or "cuda".

        LaunchError if the GPU does not take a second process.
        """
        with self._child.lock:
            if self._child.running and _sources_since(self._started):
                self._child.stop()  # it has imported what the files said before
            self._device = device
            self._begin()
            try:
                yield self
            finally:
                if device == "cuda" and self._child.running:
                    with suppress(ChildDied):
                        self.call(torch.cuda.empty_cache, time_limit_s=START_S)  # the GPU's memory is for this process again

    def call(self, function: Callable, *args, time_limit_s: float | None = None):
        """`function(*args)`, computed there. What it prints appears here.

        What it raises is raised here, the frames it came through in the attribute `remote_frames` of the error and of each of its causes.
        CannotBeSent if function, arguments or what they refer to cannot leave this process; ChildDied, and NoAnswer after `time_limit_s`.
        """
        if not self._child.running:  # ended during this session
            self._begin()
        return self._request(function, args, time_limit_s)

    def _request(self, function: Callable, args: tuple, time_limit_s: float | None):
        kind, answer, crashed = pickle.loads(self._child.call(pack((function, args)), time_limit_s=time_limit_s))
        if crashed:
            self._child.stop()
        if kind == "value":
            return answer
        if kind == "not unpacked":
            raise CannotBeSent(answer)
        raise _joined(answer)

    def _begin(self) -> None:
        if not self._child.running:
            self._started = time.time()
        index = None if self._device == "cpu" else torch.cuda.current_device() if torch.cuda.is_initialized() else 0
        try:
            self._request(_begin, (Surroundings(), index), START_S)
        except (RuntimeError, ChildDied) as error:
            reason = str(error) if isinstance(error, ChildDied) else str(error).splitlines()[0]
            raise LaunchError(f"a second process cannot use {self._device}: {reason}; isolated=False runs the function in this one") from error


worker = Worker()


def _sources_since(moment: float) -> bool:
    """Has a module's file that is no part of an installed package changed since then?"""
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    own = [Path(file) for file in files if file.endswith(".py") and not file.startswith(_INSTALLED)]
    return any(file.exists() and file.stat().st_mtime > moment for file in own)


def _joined(chain: list[tuple[BaseException, list]]) -> BaseException:
    """The error and its causes, put together again."""
    errors = [error for error, _ in chain]
    for (error, frames), cause in zip(chain, [*errors[1:], None]):
        error.remote_frames, error.__cause__ = frames, cause
    return errors[0]


# ---- in the second Python -------------------------------------------------------------------------------------------


def serve() -> None:
    """Call what is asked for, until the parent hangs up."""
    serve_requests(_serve_one)


def _serve_one(request: bytes, descriptors: list[int]) -> bytes:
    try:
        function, args = cloudpickle.loads(request)
    except Exception as error:
        return pickle.dumps(("not unpacked", f"{type(error).__name__}: {error}", False))
    try:
        return pack(("value", function(*args), False))
    except BaseException as error:  # SystemExit and KeyboardInterrupt of the reader's function, too
        chain = [error]
        while (cause := chain[-1].__cause__) is not None and cause not in chain:
            chain.append(cause)
        answer = [(_portable(link), traceback.extract_tb(link.__traceback__)) for link in chain]
        return pack(("error", answer, bool(gpu.crash())))


def _portable(error: BaseException) -> BaseException:
    """The error itself if it can be sent, else one that says the same."""
    try:
        pickle.loads(pack(error))
    except Exception:
        return LabKernelsError(f"{type(error).__name__}: {error}")
    return error


def _begin(surroundings: Surroundings, gpu_index: int | None) -> None:
    surroundings.adopt()
    if gpu_index is not None:
        torch.cuda.set_device(gpu_index)
        torch.zeros((), device="cuda")
        torch.cuda.synchronize()
