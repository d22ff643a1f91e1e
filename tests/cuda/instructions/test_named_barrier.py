"""Named barriers: some warps wait for each other, others only arrive, the rest is not concerned."""

import pytest
import torch

from labkernels.cuda import Kernel, sanitize
from labkernels.errors import LaunchError

# Warps 0 and 1 hand tiles to warps 2 and 3 through two buffers: barriers 1, 2 say full, 3, 4 say empty. y (4, 64) = 2 x reversed.
HAND_OVER = r"""
    #include "named_barrier.cuh"
    extern "C" __global__ void hand_over(const float* x, float* y, int rounds) {
        __shared__ float buffer[2][64];
        const int t = threadIdx.x % 64;
        for (int i = 0; i < rounds; ++i) {
            const int s = i % 2;
            if (threadIdx.x < 64) {
                if (i >= 2 && WAIT_EMPTY) named_barrier_sync(3 + s, 128);
                buffer[s][t] = 2 * x[64 * i + t];
                named_barrier_arrive(1 + s, 128);
            } else {
                if (WAIT_FULL) named_barrier_sync(1 + s, 128);
                y[64 * i + t] = buffer[s][63 - t];
                if (i + 2 < rounds) named_barrier_arrive(3 + s, 128);
            }
        }
    }"""


def hand_over(wait_empty: int = 1, wait_full: int = 1) -> Kernel:
    return Kernel(HAND_OVER, "hand_over", defines={"WAIT_EMPTY": wait_empty, "WAIT_FULL": wait_full})


def arguments(rounds: int, device: str = "cpu"):
    x = torch.randn(rounds, 64, generator=torch.Generator().manual_seed(rounds)).to(device)
    return x, torch.full_like(x, float("nan")), rounds


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_producers_and_consumers_meet(rounds, device):
    x, y, _ = args = arguments(rounds, device)
    hand_over()(1, 128, args)
    assert torch.equal(y, 2 * x.flip(1))


def test_what_came_before_an_arrival_is_ordered():
    report = sanitize(hand_over(), 1, 128, arguments(7))
    assert report.clean, report


@pytest.mark.parametrize("waits", [(0, 1), (1, 0)])
def test_a_wait_left_out_is_a_race(waits):
    report = sanitize(hand_over(*waits), 1, 128, arguments(6), time_limit_s=5)
    assert report.findings[0].kind == "race" and any(finding.array == "buffer" for finding in report.findings), report


def test_a_producer_that_runs_ahead_is_found():
    report = sanitize(hand_over(wait_empty=0), 1, 128, arguments(8), time_limit_s=5)
    assert any("a second time before the others have come" in finding.text for finding in report.findings), report


def test_the_rest_of_the_block_is_not_concerned(device):
    kernel = Kernel(
        r"""
        #include "named_barrier.cuh"
        extern "C" __global__ void pair(int* y) {
            __shared__ int seen[64];
            if (threadIdx.x >= 64) return;
            seen[threadIdx.x] = threadIdx.x;
            named_barrier_sync(5, 64);
            y[threadIdx.x] = seen[63 - threadIdx.x];
        }""",
        "pair",
    )
    y = torch.full((64,), -1, dtype=torch.int32, device=device)
    kernel(1, 160, (y,))
    assert torch.equal(y.cpu(), torch.arange(63, -1, -1, dtype=torch.int32))


@pytest.mark.parametrize(
    "call, words",
    [
        ("named_barrier_sync(0, 64)", "from 1 to 15"),
        ("named_barrier_sync(1, 40)", "multiple of 32"),
        ("named_barrier_sync(1, threadIdx.x < 32 ? 64 : 32)", "expects 32 threads, those before it 64"),
        ("named_barrier_sync(1, 96)", "wait for named_barrier_sync"),
    ],
)
def test_wrong_use_is_refused(call, words):
    source = f'#include "named_barrier.cuh"\nextern "C" __global__ void wrong(int* y) {{ {call}; y[0] = 1; }}\n'
    with pytest.raises(LaunchError, match=words):
        Kernel(source, "wrong")(1, 64, (torch.zeros(1, dtype=torch.int32),))
