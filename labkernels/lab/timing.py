"""How long a call takes on the GPU: CUDA events, many samples, the median and how far they spread.

The GPU is kept busy with a wait while the host queues the calls, so that a short kernel is not charged for Python's launch time. Calls
shorter than an event's own overhead are timed several at once.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

SHORTEST_SAMPLE_MS = 0.4  # events cost 2 to 4 us: at most one percent of this
MOST_SAMPLES, FEWEST_SAMPLES = 100, 3
MOST_QUEUED, FEWEST_QUEUED = 400, 12  # calls in the launch queue at once: if they launch more than it holds (about 1000), the host waits for the GPU
LONGEST_WAIT_MS, WAIT_FACTOR = 100.0, 1.5  # how long the GPU waits for the host at most, and how much longer than expected
MOST_INPUT_SETS = 500


@dataclass(frozen=True)
class Timing:
    """Median and 20th and 80th percentile of the time of one call, in milliseconds, from `samples` samples."""

    ms: float
    ms_p20: float
    ms_p80: float
    samples: int


def time_calls(call: Callable, inputs: Sequence, budget_ms: float = 150.0) -> Timing:
    """Time `call(one of inputs)`, each sample with the next of `inputs` in turn, for about `budget_ms` after a warm-up."""
    turn = itertools.cycle(inputs)
    for _ in range(3):  # compilers, caches and clocks warm up; the last call is also a first estimate
        host_start = time.perf_counter()
        call(next(turn))
        host_ms = 1e3 * (time.perf_counter() - host_start)
        torch.cuda.synchronize()
        estimate_ms = 1e3 * (time.perf_counter() - host_start)

    queue = min(MOST_QUEUED, int(LONGEST_WAIT_MS / (WAIT_FACTOR * host_ms)))  # calls that the host can queue while the GPU waits
    if estimate_ms < 20 * SHORTEST_SAMPLE_MS:  # the estimate holds the host's time too; time a few to see the GPU's alone
        ((trial,), _) = _sample(call, turn, 1, min(10, max(1, queue)), host_ms)
        estimate_ms = max(1e-4, trial)
    while True:
        per_sample = 1
        if estimate_ms < 20 * SHORTEST_SAMPLE_MS:
            per_sample = max(1, min(queue // FEWEST_SAMPLES, math.ceil(SHORTEST_SAMPLE_MS / estimate_ms)))
        most = min(MOST_SAMPLES, queue // per_sample)
        count = max(FEWEST_SAMPLES, min(most, round(budget_ms / (estimate_ms * per_sample))))
        samples, host_was_late = _sample(call, turn, count, per_sample, host_ms)
        if not host_was_late or queue <= FEWEST_QUEUED:
            break
        queue //= 2  # calls of many launches: fewer of them fit in the launch queue
    samples.sort()
    return Timing(_percentile(samples, 50), _percentile(samples, 20), _percentile(samples, 80), len(samples))


def input_sets_needed(bytes_read: float) -> int:
    """How many different inputs of this size to rotate through so that none is still in L2 when its turn comes again."""
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return min(MOST_INPUT_SETS, 1 + math.ceil(2 * cache / max(1.0, bytes_read)))


def _sample(call: Callable, turn, samples: int, per_sample: int, host_ms: float) -> tuple[list[float], bool]:
    """Milliseconds a call, `samples` times, each the mean of `per_sample` calls in a row; and whether the GPU had to wait for the host."""
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(samples)]
    wait_ms = min(LONGEST_WAIT_MS, WAIT_FACTOR * host_ms * samples * per_sample)
    torch.cuda._sleep(int(wait_ms * 2e6))  # in clock cycles, at about 2 GHz
    for start, end in events:
        start.record()
        for _ in range(per_sample):
            call(next(turn))
        end.record()
    host_was_late = events[-1][0].query()  # everything is only just queued, and the GPU is at the last sample already
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / per_sample for start, end in events], host_was_late


def _percentile(ordered: Sequence[float], percent: float) -> float:
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])
