"""On a GPU, candidates run in a second process: whatever a kernel does there, this process can still use the GPU."""

import os
import threading
import time

import pytest
import torch

import labkernels as lk
from labkernels.lab.bench import bench
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed

pytestmark = pytest.mark.gpu

SUM = """
extern "C" __global__ void sum(const float* x, float* total, int n, volatile float* go_on) {
#ifndef LK_EMULATOR
    if (n >= 1000) { HERE; }
#endif
    if (threadIdx.x == 0) for (int i = 0; i < n; ++i) *total += x[i];
}"""
NUMBA_CELL = """
import torch
from labkernels.cuda.numba_cuda import as_numba, cuda, stream

@cuda.jit
def add_up(x, total):
    i = cuda.grid(1)
    if i < x.size:
        cuda.atomic.add(total, 0, x[i])

def numba_sum(x):
    total = torch.zeros(1, device=x.device)
    add_up[-(-len(x) // 64), 64, stream(x)](as_numba(x), as_numba(total))
    return total
"""
HANG = "while (*go_on == 0.0f) { }"


def sum_that(does: str):
    """A sum that is right in the emulator, and on the GPU runs the statement `does` from n = 1000 on."""
    kernel = lk.Kernel(SUM.replace("HERE", does), "sum")

    def sum(x):
        total, go_on = torch.zeros((), device=x.device), torch.zeros(1, device=x.device)
        kernel(1, 32, (x.contiguous(), total, len(x), go_on))
        return total

    return sum


@pytest.fixture(autouse=True)
def this_process_can_use_its_gpu():
    """Before the test and after it, PyTorch's kernels and ours work here, and what lay in the GPU's memory is there."""
    before = torch.randn(1000, device="cuda")
    kept, total = before.cpu(), torch.zeros((), device="cuda")
    add_up = lk.Kernel(SUM.replace("HERE", ""), "sum")
    add_up(1, 32, (before, total, 1000, total))
    torch.cuda.synchronize()
    yield
    assert torch.equal(before.cpu(), kept) and (before + before).sum().isfinite()
    total.zero_()
    add_up(1, 32, (before, total, 1000, total))
    torch.testing.assert_close(total.cpu().double(), kept.double().sum(), rtol=1e-4, atol=1e-3)


def test_a_right_kernel_passes_in_another_process(capsys):
    here = os.getpid()
    right = sum_that("")

    def elsewhere(x):
        assert os.getpid() != here
        return right(x)

    report = check("sum", elsewhere)
    assert report.device == "cuda" and report.sanitizer == "clean" and report.passed > 20
    begun = time.monotonic()
    check("sum", elsewhere)
    assert time.monotonic() - begun < 10


def test_a_kernel_that_hangs_is_ended_and_the_next_check_runs():
    begun = time.monotonic()
    with pytest.raises(CheckFailed) as raised:
        check("sum", sum_that(HANG), time_limit_s=5)
    assert time.monotonic() - begun < 60
    assert raised.value.reason == "exception" and raised.value.got == "no result within 5 s"
    assert raised.value.case == "n=1000; float32, seed 0, cuda" and "this one is unharmed" in raised.value.detail
    assert check("sum", torch.sum, quiet=True).passed > 20


@pytest.mark.parametrize("does, said", [
    ("((volatile float*)16)[threadIdx.x] = 1.0f", "illegal memory access"),
    ("*(volatile float*)((char*)total + 1) = 1.0f", "misaligned address"),
    ("__trap()", ""),
])  # fmt: skip
def test_a_kernel_that_crashes_fails_its_check_and_the_next_one_runs(does, said):
    with pytest.raises(CheckFailed) as raised:
        check("sum", sum_that(does))
    assert raised.value.reason == "exception" and raised.value.got.startswith("CUDA error: ") and said in raised.value.got
    assert raised.value.case == "n=1000; float32, seed 0, cuda" and "this one is unharmed" in raised.value.detail
    assert check("sum", torch.sum, quiet=True).passed > 20


def test_interrupting_ends_a_kernel_that_hangs():
    check("sum", torch.sum, quiet=True)
    timer = threading.Timer(8.0, os.kill, (os.getpid(), 2))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        check("sum", sum_that(HANG), time_limit_s=100)
    assert check("sum", torch.sum, quiet=True).passed > 20


def test_a_tensor_on_the_gpu_that_a_function_refers_to_goes_with_it():
    one = torch.ones((), device="cuda")
    assert check("sum", lambda x: x.sum() * one.to(x.device), quiet=True).passed > 20


def test_a_numba_kernel_of_a_cell_goes_with_its_function():
    cell = {"__name__": "__main__"}
    exec(NUMBA_CELL, cell)
    assert check("sum", cell["numba_sum"], quiet=True).passed > 20


def test_every_variant_can_be_sent():
    for variant in lk.ops["sum"].variants.values():
        assert check("sum", variant, quiet=True, n=[33, 1000]).passed >= 2


def test_a_function_that_hangs_costs_its_rows_of_a_bench():
    frame = bench("sum", ["v3_warp", sum_that(HANG), "torch"], n=[1 << 16, 1 << 20], time_limit_s=20).frame
    assert frame["ms"].notna().tolist() == [True, False, True] * 2
    assert frame["note"][1] == "ended: no answer within 20 s" and "had to be ended" in frame["note"][4]
