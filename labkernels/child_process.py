"""A Python process that serves this one, and may die of what it is asked to do: this one lives on.

A request is bytes over a socket, with open files if need be, and so is the answer. One child serves many requests, one after the other. It
is started at the first, ended when it does not answer in time or its caller is interrupted, and started anew at the next.
"""

from __future__ import annotations

import array
import atexit
import codecs
import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

START_S = 120.0  # to import what it serves with
END_S = 10.0  # how long to wait for a killed child: a GPU's driver may have to stop a kernel first


class ChildDied(Exception):
    """The child ended without an answer; the text says of what."""


class NoAnswer(ChildDied):
    """The child did not answer within the time limit, and was ended."""


class ChildProcess:
    """A child that runs `serve`, a function "module:name" that calls `serve_requests`. With `relay`, what it prints appears here, live."""

    def __init__(self, serve: str, relay: bool = False):
        self._serve, self._relay = serve, relay
        self.lock = threading.RLock()  # hold it to make several requests in a row
        self._process: subprocess.Popen | None = None
        self._connection: socket.socket | None = None
        self._text = codecs.getincrementaldecoder("utf-8")("replace")
        atexit.register(self.stop)
        os.register_at_fork(after_in_child=self._forget)

    def call(self, request: bytes, descriptors: Sequence[int] = (), time_limit_s: float | None = None) -> bytes:
        """The child's answer to `request`. Raises ChildDied, and NoAnswer after `time_limit_s`; interrupting the call ends the child."""
        with self.lock:
            try:
                if not self.running:
                    self._start()
                _send(self._connection, request, descriptors)
                return self._answer(time_limit_s)
            except (EOFError, OSError) as error:
                cause = self._cause_of_death() or str(error)
                self.stop()
                raise ChildDied(cause) from error
            except BaseException:
                self._write_printed()
                self.stop()
                raise

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the child, if there is one, and the compilers and others that it has started."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        connection.close()
        if process.stdout is not None:
            process.stdout.close()

    def _start(self) -> None:
        self.stop()
        self._connection, theirs = socket.socketpair()
        module, name = self._serve.split(":")
        command = [sys.executable, "-c", f"from {module} import {name}; {name}()", str(theirs.fileno())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "bufsize": 0} if self._relay else {}
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, start_new_session=True, **output
            )
        if self._relay:
            os.set_blocking(self._process.stdout.fileno(), False)
        self._connection.settimeout(START_S)
        try:
            _receive(self._connection)
        except (EOFError, OSError) as error:
            raise ChildDied(f"it could not be started: {self._printed()[0].strip() or error}") from error
        self._connection.settimeout(None)
        self._printed()  # what imports warn of was said in this process too

    def _answer(self, time_limit_s: float | None) -> bytes:
        """Wait for the answer, and write what the child prints meanwhile."""
        deadline = time.monotonic() + time_limit_s if time_limit_s is not None else float("inf")
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            if self._relay:
                selector.register(self._process.stdout, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                ready = {key.fileobj for key, _ in selector.select(None if time_limit_s is None else left)}
                if not self._write_printed() and self._process.stdout in ready:
                    selector.unregister(self._process.stdout)
                if self._connection in ready:
                    answer, _ = _receive(self._connection)
                    self._write_printed()
                    return answer
        raise NoAnswer(f"no answer within {time_limit_s:g} s")

    def _write_printed(self) -> bool:
        """Write what the child has printed since it was last asked; False if it has closed its output."""
        printed, is_open = self._printed()
        if printed:
            sys.stdout.write(printed)
        return is_open

    def _printed(self) -> tuple[str, bool]:
        """What the child has printed, though no more than a pipe holds: it may never stop. And can there be more?"""
        if self._process is None or self._process.stdout is None:
            return "", True
        printed = self._process.stdout.read(1 << 16)  # None: nothing now, b"": no more
        return self._text.decode(printed or b""), printed != b""

    def _cause_of_death(self) -> str:
        """What a child that has hung up died of; nothing if it lives."""
        try:
            status = self._process.wait(1.0)  # it hangs up a moment before it has ended
        except subprocess.TimeoutExpired:
            return ""
        self._write_printed()
        return f"it ended with status {status}" if status >= 0 else f"{signal.Signals(-status).name}: {signal.strsignal(-status)}"

    def _forget(self) -> None:
        """In a fork of this process, which has no children yet."""
        self.lock = threading.RLock()
        self._process = self._connection = None


def _send(connection: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    header = len(data).to_bytes(8, "little")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([header], rights)
    connection.sendall(data)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    header, descriptors, _, _ = socket.recv_fds(connection, 8, 1)
    if len(header) < 8:
        raise EOFError("it has hung up")
    length, parts = int.from_bytes(header, "little"), []
    while length:
        part = connection.recv(min(length, 1 << 20))
        if not part:
            raise EOFError("it has hung up")
        parts.append(part)
        length -= len(part)
    return b"".join(parts), list(descriptors)


# ---- in the child ---------------------------------------------------------------------------------------------------


def serve_requests(answer: Callable[[bytes, list[int]], bytes]) -> None:
    """Answer requests from the socket that the command line names, until the parent hangs up."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive the parent
    with contextlib.suppress(EOFError, OSError):
        _send(connection, b"")  # ready
        while True:
            request, descriptors = _receive(connection)
            reply = answer(request, descriptors)
            sys.stdout.flush()
            libc.fflush(None)  # a GPU's printf writes through C's
            _send(connection, reply)
