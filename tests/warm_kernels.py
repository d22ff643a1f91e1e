"""Jupyter kernels that start warm: one process imports what every lab imports, and each kernel is a fork of it.

A kernel that starts cold takes some three seconds of a core, nearly all of them imports, and the tests of the book start one
for every lab and every way of running it. Inside

    with started(environment) as path, used(path): ...

the variable JUPYTER_PATH makes nbclient, papermill, nbval and nbgrader find such kernels under the name python3. Each is a process of
its own, with the environment, current folder and standard streams of whoever started it. Nothing of the package has run in the
process that is forked: its modules are imported, no kernel compiled, no thread of torch's started, no random number drawn.

This file is the three sides of it: the fixture's, the forking process's (`serve`), and that of the command that Jupyter starts
(`stand_for_a_kernel`), which waits for the fork, and passes signals on. The latter imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PRELOADED = ("ipykernel.kernelapp", "ipykernel.ipkernel", "pandas", "torch", "torch._dynamo", "matplotlib.backends.backend_agg", "matplotlib.pyplot")
PRELOADED += tuple(
    f"labkernels.{name}"
    for name in (
        "lab.magics",
        "lab.check",
        "lab.check_against",
        "lab.check_counters",
        "lab.bench",
        "lab.draw",
        "lab.compile_report",
        "classroom.predictions",
        "classroom.reasons",
        "functional",
        "nn",
    )
)
PICTURES = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # what ipykernel sets; matplotlib reads it when imported


@contextlib.contextmanager
def started(environment: dict[str, str]) -> Iterator[str]:
    """The process to be forked, which imports with `environment`; gives what JUPYTER_PATH must be."""
    with tempfile.TemporaryDirectory() as folder:  # a short path: a socket's has at most a hundred characters
        address, spec = f"{folder}/socket", Path(folder, "kernels", "python3", "kernel.json")
        with socket.socket(socket.AF_UNIX) as listener:  # listens before the process is ready: who comes early waits
            listener.bind(address)
            listener.listen(32)
            command = [sys.executable, __file__, "serve", str(listener.fileno())]
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()])
        stands = [sys.executable, "-I", "-S", __file__, "stand", address, "-f", "{connection_file}"]
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps({"argv": stands, "display_name": "Python 3", "language": "python"}))
        try:
            yield os.pathsep.join(filter(None, [folder, environment.get("JUPYTER_PATH")]))
        finally:
            process.terminate()
            process.wait(10)


@contextlib.contextmanager
def used(jupyter_path: str) -> Iterator[None]:
    """Inside, Jupyter starts warm kernels."""
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", jupyter_path)
        yield


def stand_for_a_kernel(address: str, arguments: list[str]) -> None:
    """Ask for a kernel, and live as long as it does: an interrupt goes on to it, and it ends when this process is killed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        wanted = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
        socket.send_fds(connection, [b"s"], [0, 1, 2])
        connection.sendall(json.dumps(wanted).encode() + b"\n")
        kernel = int(connection.recv(32))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: os.killpg(kernel, number))
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(kernel, 0)  # raises once it is gone, whoever else still holds the connection
                select.select([connection], [], [], 0.05)


def serve(listener: socket.socket) -> None:
    """Import everything, then fork a kernel for each connection."""
    import gc
    from importlib import import_module

    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # a kernel ends when the process with this number does
    os.environ.update(PICTURES)
    sys.path.remove(str(Path(__file__).parent))
    for name in PRELOADED:
        import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the operating system buries them
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionError):
            _, streams, _, _ = socket.recv_fds(connection, 1, 3)
            wanted = json.loads(connection.makefile("rb").readline())
            if os.fork() == 0:
                listener.close()
                run_kernel(connection, streams, **wanted)
                os._exit(1)
            for stream in streams:
                os.close(stream)


def run_kernel(connection: socket.socket, streams: list[int], arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """In the fork: become what `python -m ipykernel_launcher` would have become."""
    import threading

    import numpy
    from ipykernel.kernelapp import launch_new_instance

    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment, JPY_PARENT_PID=str(os.getppid()), **PICTURES)
    os.chdir(folder)
    numpy.random.seed()
    connection.sendall(str(os.getpid()).encode())
    threading.Thread(target=end_with, args=(connection,), daemon=True).start()
    sys.argv = ["ipykernel_launcher", *arguments]
    launch_new_instance()
    os._exit(0)


def end_with(connection: socket.socket) -> None:
    """Wait until the process that stands for this kernel is gone, then go too."""
    connection.recv(1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    role, where, *rest = sys.argv[1:]
    if role == "serve":
        serve(socket.socket(fileno=int(where)))
    else:
        stand_for_a_kernel(where, rest)
