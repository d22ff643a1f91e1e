"""mbarriers: phases and their parity, arrivals, waits that order; elect_one."""

import pytest
import torch

from labkernels.cuda import Kernel, sanitize
from labkernels.errors import LaunchError

# A ring of two buffers: warp 0 produces a row a round, warp 1 consumes it. y = x reversed within rows.
RING = r"""
    #include "mbarrier.cuh"
    extern "C" __global__ void ring(const float* x, float* y, int rounds) {
        __shared__ float buffer[2][32];
        __shared__ Mbarrier full[2], empty[2];
        const int t = threadIdx.x % 32;
        if (threadIdx.x == 0 && INIT) {
            for (int s = 0; s < 2; ++s) mbarrier_init(&full[s], 32), mbarrier_init(&empty[s], 32);
            fence_mbarrier_init();
        }
        if (MEET) __syncthreads();
        for (int i = 0; i < rounds; ++i) {
            const int s = i % 2, parity = i / 2 % 2;
            if (threadIdx.x < 32) {
                mbarrier_wait(&empty[s], parity ^ 1);
                buffer[s][t] = x[32 * i + t];
                mbarrier_arrive(&full[s]);
            } else {
                while (!mbarrier_try_wait(&full[s], parity)) {}
                if (EARLY) mbarrier_arrive(&empty[s]);
                y[32 * i + t] = buffer[s][31 - t];
                if (!EARLY) mbarrier_arrive(&empty[s]);
            }
        }
    }"""


def ring(**changes: int) -> Kernel:
    return Kernel(RING, "ring", defines={"INIT": 1, "MEET": 1, "EARLY": 0} | changes)


def arguments(rounds: int, device: str = "cpu"):
    x = torch.randn(rounds, 32, generator=torch.Generator().manual_seed(rounds)).to(device)
    return x, torch.full_like(x, float("nan")), rounds


@pytest.mark.parametrize("rounds", [1, 2, 3, 9])
def test_a_ring_hands_every_row_over(rounds, device):
    x, y, _ = args = arguments(rounds, device)
    ring()(1, 64, args)
    assert torch.equal(y, x.flip(1))


def test_a_ring_is_clean_under_the_sanitizer():
    report = sanitize(ring(), 1, 64, arguments(9))
    assert report.clean, report


def test_a_buffer_handed_back_before_it_is_read_is_a_race():
    report = sanitize(ring(EARLY=1), 1, 64, arguments(4))
    assert report.findings[0].kind == "race" and report.findings[0].array == "buffer", report


def test_an_mbarrier_used_before_the_block_has_met_is_a_race():
    report = sanitize(ring(MEET=0), 1, 64, arguments(1), time_limit_s=3)
    assert {finding.kind for finding in report.findings} & {"race", "uninitialized"}, report
    assert report.findings[0].array in ("full", "empty"), report


def test_wrong_use_is_refused():
    too_often = r"""
        #include "mbarrier.cuh"
        extern "C" __global__ void wrong(int* y) {
            __shared__ Mbarrier barrier;
            if (threadIdx.x == 0) { mbarrier_init(&barrier, 48); }
            __syncthreads();
            mbarrier_expect_tx(&barrier, 16);
            mbarrier_arrive(&barrier);
            y[0] = 1;
        }"""
    with pytest.raises(LaunchError, match="more arrivals in one phase than the 48"):
        Kernel(too_often, "wrong")(1, 64, (torch.zeros(1, dtype=torch.int32),))
    never = r"""
        #include "mbarrier.cuh"
        extern "C" __global__ void wrong(int* y) {
            __shared__ Mbarrier barrier;
            if (threadIdx.x == 0) mbarrier_init(&barrier, 2);
            __syncthreads();
            if (threadIdx.x == 0) mbarrier_arrive(&barrier);
            mbarrier_wait(&barrier, 0);
            y[0] = 1;
        }"""
    y = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(LaunchError, match="wait for mbarrier_wait"):
        Kernel(never, "wrong")(1, 64, (y,))
    (finding,) = sanitize(Kernel(never, "wrong"), 1, 64, (y,)).findings
    assert finding.kind == "deadlock" and "mbarrier_wait" in finding.text


def test_one_lane_of_each_warp_is_elected(device):
    kernel = Kernel(
        '#include "mbarrier.cuh"\nextern "C" __global__ void elect(int* y) { y[threadIdx.x] = elect_one(); }\n', "elect"
    )
    y = torch.full((96,), -1, dtype=torch.int32, device=device)
    kernel(1, 96, (y,))
    assert y.view(3, 32).sum(1).tolist() == [1, 1, 1] and set(y.tolist()) == {0, 1}


def test_compiles_for_hopper():
    every = r"""
        #include "mbarrier.cuh"
        #include "named_barrier.cuh"
        #include "setmaxnreg.cuh"
        extern "C" __global__ void __launch_bounds__(256, 1) every(int* y) {
            __shared__ Mbarrier barrier;
            grid_dependency_wait();
            if (threadIdx.x == 0) {
                mbarrier_init(&barrier, 1);
                fence_mbarrier_init();
            }
            __syncthreads();
            if (threadIdx.x < 128) {
                register_allocate<240>();
                if (threadIdx.x < 32 && elect_one()) {
                    mbarrier_expect_tx(&barrier, 0);
                    mbarrier_arrive_expect_tx(&barrier, 0);
                }
                mbarrier_wait(&barrier, 0);
                y[threadIdx.x] = threadIdx.x;
                fence_proxy_async();
                named_barrier_arrive(1, 256);
            } else {
                register_deallocate<24>();
                named_barrier_sync(1, 256);
                y[threadIdx.x] = y[threadIdx.x - 128];
            }
            grid_dependency_launch();
        }"""
    kernel = Kernel(every, "every")
    assert kernel.resources("sm_90a").stack_bytes == 0 and ring().resources("sm_90a").stack_bytes == 0
    y = torch.full((256,), -1, dtype=torch.int32)
    report = sanitize(kernel, 1, 256, (y,), write_back=True)
    assert report.clean, report
    assert y.tolist() == [*range(128)] * 2
