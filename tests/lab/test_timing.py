"""Timing on a GPU: what the host does is not counted, what the GPU does is."""

import time

import pytest
import torch

from labkernels.lab.timing import _percentile, input_sets_needed, time_calls


def test_percentiles_interpolate():
    assert _percentile([1.0, 2.0, 3.0, 4.0, 5.0], 50) == 3.0
    assert _percentile([1.0, 2.0], 20) == pytest.approx(1.2)
    assert _percentile([7.0], 80) == 7.0


@pytest.mark.gpu
def test_the_hosts_time_is_not_counted():
    x = torch.randn(1 << 20, device="cuda")

    def call(x):
        time.sleep(0.0005)
        return x * 2

    assert time_calls(call, [x], budget_ms=5.0).ms < 0.1


@pytest.mark.gpu
def test_time_follows_the_work():
    times = [time_calls(lambda x: x * 2, [torch.randn(n, device="cuda")]).ms for n in (1 << 26, 1 << 28)]
    assert 3.5 < times[1] / times[0] < 4.5


@pytest.mark.gpu
def test_inputs_take_turns():
    seen = set()
    time_calls(lambda x: seen.add(x.data_ptr()), [torch.zeros(1, device="cuda") for _ in range(3)], budget_ms=1.0)
    assert len(seen) == 3


@pytest.mark.gpu
def test_small_inputs_are_rotated_past_l2_and_large_ones_are_not():
    assert input_sets_needed(1 << 20) > 2
    assert input_sets_needed(1 << 33) == 2


@pytest.mark.gpu
def test_calls_of_many_launches_are_not_timed_at_the_hosts_pace():
    x = torch.randn(1 << 10, device="cuda")

    def call(x):
        time.sleep(0.0002)
        for _ in range(12):  # of as many calls as are queued at first, more launches than the queue holds
            x = x * 2

    assert time_calls(call, [x]).ms < 0.1
