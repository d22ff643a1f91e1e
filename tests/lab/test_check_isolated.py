"""Judging in a second process: the same verdicts as in this one, and no candidate can do harm."""

import ctypes
import functools
import importlib
import os
import sys
import threading
import time

import pytest
import torch

import labkernels as lk
from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.check_against import check_against
from labkernels.lab.failure import CheckFailed
from labkernels.operation import ops

SUM = """
extern "C" __global__ void sum(const float* x, float* total, int n) {
    if (threadIdx.x == 0) for (int i = 0; i < n; ++i) *total += x[i];
}"""
kernel = lk.Kernel(SUM, "sum")
NUMBA_CELL = """
import torch
from labkernels.cuda.numba_cuda import as_numba, cuda

@cuda.jit
def add_up(x, total):
    i = cuda.grid(1)
    if i < x.size:
        cuda.atomic.add(total, 0, x[i])

def numba_sum(x):
    total = torch.zeros(1, device=x.device)
    add_up[-(-len(x) // 64), 64](as_numba(x), as_numba(total))
    return total
"""


def sum_by(kernel):
    def sum(x):
        total = torch.zeros((), device=x.device)
        kernel(1, 32, (x.contiguous(), total, len(x)))
        return total

    return sum


def isolated(fn, op="sum", **options):
    options = {"time_limit_s": 20, "seeds": [0], **options}
    return check(op, fn, isolated=True, quiet=True, **options)


def failure_of(fn, **options) -> CheckFailed:
    with pytest.raises(CheckFailed) as raised:
        isolated(fn, **options)
    return raised.value


def test_a_right_function_passes_as_in_this_process():
    here, there = check("sum", torch.sum, quiet=True, isolated=False), check("sum", torch.sum, quiet=True, isolated=True)
    assert (there.passed, there.left_out, there.sanitizer, str(there)) == (here.passed, here.left_out, here.sanitizer, str(here))


@pytest.mark.parametrize("op, fn", [
    ("sum", lambda x: x.sum() * 2),
    ("sum", lambda x: x.sum().double()),
    ("sum", lambda x: None),
    ("softmax", lambda x: torch.softmax(x, -1) * 1.01),
    ("softmax", torch.empty_like),
    ("softmax", lambda x: x.exp() / x.exp().sum(-1, keepdim=True)),
    ("softmax", lambda x: torch.softmax(x.sub_(1), -1)),
    ("softmax", lambda x: torch.softmax(x, dimension=-1)),
])  # fmt: skip
def test_a_failure_says_the_same_as_in_this_process(op, fn):
    with pytest.raises(CheckFailed) as here:
        check(op, fn, isolated=False, seeds=[0])
    there = failure_of(fn, op=op)
    assert str(there) == str(here.value) and there._repr_html_() == here.value._repr_html_()


def test_the_sanitizer_works_there_too():
    out_of_bounds = lk.Kernel(SUM.replace("i < n", "i <= n"), "sum")
    failure = failure_of(sum_by(out_of_bounds))
    assert failure.reason == "sanitizer" and "x has 1 element (kernel.cu line 3)" in failure.detail


def test_the_cause_of_an_exception_comes_along():
    def broken(x):
        return x / undefined_name

    failure = failure_of(broken)
    assert isinstance(failure.__cause__, NameError) and failure.__cause__.remote_frames[-1].name == "broken"
    assert failure.where.endswith("return x / undefined_name")


def test_an_exception_that_cannot_travel_is_told():
    def broken(x):
        class Odd(Exception):
            def __init__(self, one, two):
                super().__init__("odd")
                self.lock = threading.Lock()

        raise Odd(1, 2)

    failure = failure_of(broken)
    assert "Odd: odd" in failure.got and "Odd: odd" in str(failure.__cause__)


def test_an_endless_loop_is_ended_and_the_next_check_runs():
    def endless(x):
        if x.numel() > 300:  # not for the sanitizer's
            print("here", flush=True)
            while True:
                pass
        return x.sum()

    begun = time.monotonic()
    failure = failure_of(endless, time_limit_s=1)
    assert time.monotonic() - begun < 30
    assert failure.reason == "exception" and failure.got == "no result within 1 s" and "n=1000" in failure.case
    assert "this one is unharmed" in failure.detail and "time_limit_s" in failure.hint
    assert isolated(torch.sum).passed > 10


@pytest.mark.parametrize("end, cause", [
    (lambda: os.abort(), "SIGABRT: Aborted"),
    (lambda: ctypes.string_at(8), "SIGSEGV: Segmentation fault"),
    (lambda: os._exit(3), "it ended with status 3"),
])  # fmt: skip
def test_a_crash_fails_the_check_and_the_next_one_runs(end, cause):
    def crashes(x):
        return end() or x.sum()

    failure = failure_of(crashes)
    assert failure.reason == "exception" and cause in failure.got and failure.case.startswith("n=1; ")
    assert isolated(torch.sum).passed > 10


def test_a_gpu_that_a_kernel_has_stopped_ends_the_process_and_says_what_happened():
    def poisons(x):
        def synchronize():
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with...")

        torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, synchronize
        raise RuntimeError("somewhere later")

    failure = failure_of(poisons)
    assert failure.got == "CUDA error: an illegal memory access was encountered"
    assert "has been ended; this one is unharmed" in failure.detail and "lk.sanitize" in failure.hint
    assert isolated(torch.sum).passed > 10  # with a torch.cuda that nobody has changed


def test_what_it_prints_is_seen_here(capsys):
    def talks(x):
        print("one of", len(x))
        os.write(2, b"a warning\n")
        return x.sum()

    isolated(talks, n=33)
    assert capsys.readouterr().out.count("one of 33\na warning\n") >= 2


def test_interrupting_is_not_a_failure():
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        isolated(interrupted)


def test_interrupting_this_process_ends_the_other(capsys):
    def slow(x):
        print(os.getpid(), flush=True)
        time.sleep(60)

    timer = threading.Timer(3.0, os.kill, (os.getpid(), 2))
    isolated(torch.sum)  # warm
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        isolated(slow, time_limit_s=50)
    with pytest.raises(ProcessLookupError):
        os.kill(int(capsys.readouterr().out.split()[0]), 0)
    assert isolated(torch.sum).passed > 10


def test_kernels_travel_as_their_source():
    assert isolated(sum_by(kernel)).passed > 10
    assert isolated(sum_by(lk.Kernel(SUM.replace("sum(", "SUM_NAME("), "total", defines={"SUM_NAME": "total"}))).passed > 10


def test_variants_go_by_name():
    assert isolated("v1_naive").passed > 10
    assert isolated(ops["sum"].variants["v2_tree"]).passed > 10


def test_a_numba_kernel_goes_too():
    cell = {"__name__": "__main__"}
    exec(NUMBA_CELL, cell)
    assert isolated(cell["numba_sum"], n=[1, 33, 100], layout="contiguous", magnitude=1.0).passed == 3


def test_what_it_refers_to_goes_with_it():
    weights = torch.ones(1)

    @functools.cache
    def factor(device: str) -> torch.Tensor:
        return weights.to(device)

    class Adder:
        def __call__(self, x):
            return (x * factor(str(x.device))).sum()

    assert isolated(Adder()).passed > 10
    assert isolated(functools.partial(lambda scale, x: scale * x.sum(), 1)).passed > 10


def test_modules_that_are_none_go_by_name():
    assert isolated(lambda x: ops["sum"].native(x) if torch.ops and lk.ops else None).passed > 10


def test_what_it_changes_it_changes_in_a_copy():
    calls = []

    def counts(x):
        calls.append(len(x))
        return x.sum() * (1 if len(calls) > 3 else 1)

    isolated(counts)
    assert calls == []


def test_what_cannot_leave_this_process_is_refused_with_the_way_out():
    lock = threading.Lock()

    def locked(x):
        with lock:
            return x.sum()

    with pytest.raises(ArgumentError, match=r"locked cannot be sent .*cannot pickle '_thread.lock' object.*pass isolated=False"):
        isolated(locked)
    assert check("sum", locked, isolated=False, quiet=True).passed > 10
    assert isolated(torch.sum).passed > 10


def test_a_module_that_was_edited_is_read_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "students_sums.py"
    file.write_text("def total(x):\n    return x.sum() + 1\n")
    module = importlib.import_module("students_sums")
    assert failure_of(module.total).reason == "mismatch"
    file.write_text("def total(x):\n    return x.sum()  # mended\n")
    importlib.reload(module)
    try:
        assert isolated(module.total).passed > 10
    finally:
        del sys.modules["students_sums"]


def test_relative_paths_are_those_of_this_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "factor.txt").write_text("1")

    def reads(x):
        with open("factor.txt") as file:
            return x.sum() * int(file.read())

    assert isolated(reads).passed > 10


def test_an_operation_of_the_readers_own_goes_too():
    factor = 3.0
    cases = [{"x": (33,), "y": (33,)}, {"x": (5, 7), "y": (5, 7)}]
    assert check_against(lambda x, y: factor * x + y, lambda x, y: x * 3 + y, cases, isolated=True, quiet=True).passed == 2
    with pytest.raises(CheckFailed) as raised:
        check_against(lambda x, y: factor * x + y, lambda x, y: x + y, cases, mistakes={"x + y": lambda x, y: x + y}, isolated=True)
    assert raised.value.hint == "Your result is x + y."


def test_a_check_inside_costs_little_when_the_process_is_warm():
    isolated(torch.sum)
    begun = time.monotonic()
    isolated(torch.sum)
    assert time.monotonic() - begun < 2
