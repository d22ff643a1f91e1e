"""Who of the ranks is gone: told by name, also where this rank waits in a call that does not return.

Notable: a rank that was killed is mostly noticed by the next message between CPUs. But a GPU that waits for another one's kernel waits for
ever, and Python with it. So a thread looks at the processes of this machine, and ends this one with a message if it does not end by
itself. (Other machines' processes are their torchrun's business, which then ends all.)
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

import psutil

LOOK_S = 1.0


class RankWatch:
    """`processes`: (host, process id) of each rank. Inside the block a rank that has ended ends this process after `grace_s`, with `message()`."""

    def __init__(self, processes: Sequence[tuple[str, int]], message: Callable[[], str], grace_s: float = 5.0):
        self.processes, self.message, self.grace_s = processes, message, grace_s
        self._left = threading.Event()

    def gone(self, wait_s: float = 0.0) -> list[int]:
        """Ranks on this machine whose processes have ended; waits for the first: a process that is being killed closes its connections before."""
        end = time.monotonic() + wait_s
        while True:
            found = [rank for rank, (host, process) in enumerate(self.processes) if host == os.uname().nodename and not _lives(process)]
            if found or time.monotonic() >= end:
                return found
            time.sleep(0.02)

    def __enter__(self) -> RankWatch:
        threading.Thread(target=self._look, name="rank watch", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._left.set()

    def _look(self) -> None:
        while not self._left.wait(LOOK_S):
            if self.gone() and not self._left.wait(self.grace_s):
                leave(self.message())


def leave(message: str) -> None:
    """End this process at once: what waits for a GPU must not be waited for."""
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


def _lives(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
