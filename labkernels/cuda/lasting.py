"""Memory that outlives every CUDA graph: counters that are zero without being set to zero each time, and constants made once for all.

A captured kernel keeps addresses, not tensors: what it was given must be there, and nobody else's, for as long as its graph may be replayed. And what
is made while a graph is captured is not there before the graph has run: nobody else may be given it.

Notable:
- counters come out of a reserve for each GPU, filled with zeros in advance: a stretch for each stream, and another for each launch that is captured,
  since a graph may be replayed beside anything. Neither a reserve nor an outgrown stretch is ever given back
- a capture that finds no reserve, or an empty one, sets its own to zero in the graph, each time it is replayed
- the memory is asked for on another thread, where neither torch.compile's graphs nor torch.cuda.use_mem_pool send it to a pool of
  theirs, whose memory they give to others
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

RESERVE = 1 << 20  # counters: 4 MB
LINE = 32  # of them, a line of L2: no two launches share one
FIRST_STRETCH = 4096


def capturing(device: torch.device) -> bool:
    """Is this device's current stream captured into a CUDA graph? The current device may be another one."""
    if device.index is None or device.index == torch.cuda.current_device():
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def lasting(make: Callable[[], torch.Tensor], device: torch.device) -> torch.Tensor:
    """What make() returns, on `device`, ready to be read on any stream: waits for it. Keep it for good if graphs may read it. Not while capturing."""

    def on_its_own_thread() -> torch.Tensor:
        if device.type != "cuda":
            return make()
        with torch.cuda.device(device):
            made = make()
            torch.cuda.current_stream(device).synchronize()
        return made

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(on_its_own_thread).result()


def counters(count: int, device: torch.device, turns: int = 1) -> torch.Tensor:
    """At least `count` ints that are zero, for a kernel that leaves them zero.

    Kernels of one stream get the same ones again, by `turns` one after another: 2 for a kernel that begins to count before the kernel before it has
    ended. On the CPU they are new each time: a launch in the emulator that is interrupted leaves anything behind.
    """
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    return _reserve(device.index if device.index is not None else torch.cuda.current_device()).take(count, turns)


@functools.cache
def _reserve(index: int) -> _Reserve:
    return _Reserve(torch.device("cuda", index))


class _Stretches(NamedTuple):
    count: int
    in_turns: Iterator[torch.Tensor]


class _Reserve:
    def __init__(self, device: torch.device):
        self.device = device
        self.kept: list[torch.Tensor] = []  # all there ever was: graphs go on with what they were given
        self.left = 0  # of the last one: zeros that nobody has
        self.of_stream: dict[tuple[int, int], _Stretches] = {}
        self.lock = threading.Lock()

    def take(self, count: int, turns: int) -> torch.Tensor:
        if capturing(self.device):
            with self.lock:
                found = self._cut(count) if count <= self.left else None
            return self._zeroed_in_the_graph(count, turns) if found is None else found
        key = torch.cuda.current_stream(self.device).cuda_stream, turns
        found = self.of_stream.get(key)
        if found is None or found.count < count or self.left < RESERVE // 2:  # which captures find filled, who cannot fill it
            found = self._renewed(key, count, turns)
        return next(found.in_turns)

    def _renewed(self, key: tuple[int, int], count: int, turns: int) -> _Stretches:
        with self.lock:
            found = self.of_stream.get(key)
            size = count if count <= LINE else max(count, FIRST_STRETCH, 2 * found.count if found else 0)
            if self.left < RESERVE // 2 + turns * (size + LINE):
                self._refill(RESERVE + turns * (size + LINE))
            if found is None or found.count < count:
                found = self.of_stream[key] = _Stretches(size, itertools.cycle([self._cut(size) for _ in range(turns)]))
        return found

    def _refill(self, count: int) -> None:
        count = LINE * (count // LINE)
        self.kept.append(lasting(lambda: torch.zeros(count, dtype=torch.int32, device=self.device), self.device))
        self.left = count

    def _cut(self, count: int) -> torch.Tensor:
        start = self.kept[-1].shape[0] - self.left
        self.left -= LINE * -(-count // LINE)
        return self.kept[-1][start : start + count]

    def _zeroed_in_the_graph(self, count: int, turns: int) -> torch.Tensor:
        zeros = torch.zeros(count, dtype=torch.int32, device=self.device)
        if turns > 1:  # who counts before the kernel before has ended may begin beside that: beside this one, which waits for the zeros
            torch.zeros(1, dtype=torch.int32, device=self.device)
        return zeros
