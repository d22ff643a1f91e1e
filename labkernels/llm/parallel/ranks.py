"""A function on several processes of this machine that talk to each other: `ranks.run(function, 2)`.

Notable:
- each process is a fork, so that functions of a notebook can be run, and torch is not imported again: a few hundredths of a second
- they talk through gloo on the CPU; what they return comes back as a list, what they print is printed here, rank by rank, and what one of
  them raises is raised here, with its rank
- nothing waits for ever: a rank that is silent for `timeout_s` ends all of them

For training on several GPUs `torchrun` starts the processes: labkernels.llm.parallel.distributed.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

from labkernels.errors import ArgumentError, LabKernelsError


class RankError(LabKernelsError):
    """A rank ended without a result, or took too long."""


def run(function: Callable[..., Any], count: int = 2, *args: Any, timeout_s: float = 60.0) -> list[Any]:
    """[function(*args) of rank 0, of rank 1, ...]; inside, torch.distributed is ready. Raises what the first rank to fail raised, or RankError."""
    if count < 1:
        raise ArgumentError(f"ranks.run: count must be at least 1, got {count}")
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(count):
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=_one, args=(theirs, f"file://{folder}/meet", rank, count, timeout_s, function, args), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            return _collect(pipes, timeout_s)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(pipes: list[Connection], timeout_s: float) -> list[Any]:
    found: dict[int, Any] = {}
    failed: list[tuple[int, BaseException]] = []
    printed: dict[int, str] = {}
    end = time.monotonic() + timeout_s
    while len(found) + len(failed) < len(pipes):
        silent = [pipe for rank, pipe in enumerate(pipes) if rank not in found and rank not in dict(failed)]
        ready = wait(silent, max(0.0, end - time.monotonic()))
        if not ready and not failed:
            ranks = ", ".join(str(pipes.index(pipe)) for pipe in silent)
            raise RankError(f"rank {ranks} had no result after {timeout_s:g} s; does each send have its receive, and is it reached by all?")
        for pipe in ready:
            rank = pipes.index(pipe)
            try:
                fine, value, text = pickle.loads(pipe.recv_bytes())
                printed[rank] = text
            except EOFError:
                fine, value = False, RankError(f"rank {rank} ended without a result")
            if fine:
                found[rank] = value
            else:
                failed.append((rank, value))
                end = min(end, time.monotonic() + 0.5)  # the others may wait for this one: who fails within this time fails for a reason of its own
        if not ready:
            break
    for _, text in sorted(printed.items()):
        print(text, end="")
    if failed:
        rank, error = min(failed, key=lambda one: _is_consequence(one[1]))
        error.add_note(f"(in rank {rank} of {len(pipes)})")
        raise error
    return [found[rank] for rank in range(len(pipes))]


def _is_consequence(error: BaseException) -> bool:
    """Of another rank's end."""
    return is_communication(error) or isinstance(error, RankError)


def is_communication(error: BaseException) -> bool:
    """Does it say that another rank could not be reached?"""
    signs = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out", "connection refused", "recv failed")
    return isinstance(error, (dist.DistError, RuntimeError)) and any(sign in str(error).lower() for sign in signs)


def _one(pipe: Connection, meet: str, rank: int, count: int, timeout_s: float, function: Callable[..., Any], args: tuple) -> None:
    """In the fork. It leaves without Python's end, which belongs to the process that was forked, and so do its standard streams."""
    sys.stdout, sys.stderr = printed, _ = io.StringIO(), io.StringIO()
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    try:
        torch.set_num_threads(1)  # threads of the parent do not exist here, and there is a rank for each core
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=count, timeout=timedelta(seconds=timeout_s))
        answer = (True, function(*args))
    except BaseException as error:  # noqa: BLE001  told to the parent
        answer = (False, error)
    try:
        message = pickle.dumps((*answer, printed.getvalue()))
    except Exception:
        text = "".join(traceback.format_exception(answer[1])) if not answer[0] else f"its result, {type(answer[1]).__name__}, cannot be sent"
        message = pickle.dumps((False, RankError(f"rank {rank}: {text}"), printed.getvalue()))
    pipe.send_bytes(message)
    if answer[0]:
        with contextlib.suppress(Exception):
            dist.barrier()  # who leaves early would be missed by those that still receive
    os._exit(0)
