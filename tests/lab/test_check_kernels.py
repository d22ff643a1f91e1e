"""The checker on CUDA C++ kernels: the sanitizer comes first, a crash stays in a process of its own, and what was left out is said."""

import pytest
import torch

from labkernels.cuda import Kernel
from labkernels.lab import check as check_module
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed
from labkernels.operation import Variant

SCALE_ROWS = """
extern "C" __global__ void softmax(const float* x, float* y, int rows, int cols) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row GUARD rows) return;
    float largest = -INFINITY;
    double sum = 0;  // rows are long on a GPU
    for (int col = 0; col < cols; ++col) largest = fmaxf(largest, x[row * cols + col]);
    for (int col = 0; col < cols; ++col) sum += expf(x[row * cols + col] - largest);
    for (int col = 0; col < LAST; ++col) y[row * cols + col] = expf(x[row * cols + col] - largest) / (float)sum;
}
"""


def softmax_by(source, **allocate):
    kernel = Kernel(source, "softmax")

    def softmax(x):
        x = x.contiguous()
        y = torch.empty_like(x)
        kernel((x.shape[0] + 31) // 32, 32, (x, y, *x.shape))
        return y

    return softmax


def test_a_right_kernel_passes(capsys):
    fn = softmax_by(SCALE_ROWS.replace("GUARD", ">=").replace("LAST", "cols"))
    assert check("softmax", fn, dtypes=["float32"], seeds=[0]).sanitizer == "clean"
    assert capsys.readouterr().out == "softmax: 21 cases passed\n" or torch.cuda.is_available()


def test_a_missing_guard_is_found_by_the_sanitizer_before_anything_else():
    fn = softmax_by(SCALE_ROWS.replace("GUARD", ">").replace("LAST", "cols"))
    with pytest.raises(CheckFailed) as raised:
        check("softmax", fn, dtypes=["float32"], quiet=True)
    failure = raised.value
    assert failure.reason == "sanitizer" and "x[" in str(failure)
    assert "rows=1, cols=1; float32, seed 0, cpu" in failure.case
    assert failure.__cause__.report.findings[0].kind == "out_of_bounds"


def test_a_column_never_written_is_told_from_a_wrong_one():
    fn = softmax_by(SCALE_ROWS.replace("GUARD", ">=").replace("LAST", "(cols > 32 ? 32 : cols)"))
    with pytest.raises(CheckFailed) as raised:
        check("softmax", fn, dtypes=["float32"], quiet=True)
    assert raised.value.reason == "not_written" and raised.value.where == "row 0, col 32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the emulator alone knows who wrote an element")
def test_the_thread_that_wrote_the_first_wrong_element_is_named():
    wrong_row = SCALE_ROWS.replace("GUARD", ">=").replace("LAST", "cols").replace("(float)sum", "((float)sum + (row == 35))")
    with pytest.raises(CheckFailed) as raised:
        check("softmax", softmax_by(wrong_row), dtypes=["float32"], rows=40, quiet=True)
    assert raised.value.reason == "mismatch" and raised.value.where.startswith("row 35,")
    assert raised.value.owner == "thread 3 of block 1 (softmax)" and "thread 3 of block 1" in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the emulator alone knows who wrote an element")
def test_the_writer_of_a_single_number_is_named_too():
    kernel = Kernel('extern "C" __global__ void twice(const float* x, float* y, int n) { if (threadIdx.x == 5) *y = 2 * x[n - 1]; }', "twice")

    def twice(x):
        y = torch.empty(1)
        kernel(1, 32, (x.contiguous(), y, x.numel()))
        return y

    with pytest.raises(CheckFailed) as raised:
        check("sum", twice, quiet=True)
    assert raised.value.owner == "thread 5 of block 0 (twice)"


def test_a_wrong_dtype_for_the_kernel_is_an_exception_that_names_the_argument():
    fn = softmax_by(SCALE_ROWS.replace("GUARD", ">=").replace("LAST", "cols"))
    with pytest.raises(CheckFailed) as raised:
        check("softmax", fn, quiet=True)
    assert raised.value.reason == "exception" and "ArgumentError" in raised.value.got and "bfloat16" in raised.value.got
    assert raised.value.where.startswith("softmax, line ")


def test_a_crash_does_not_take_this_process_with_it():
    crashing = "extern \"C\" __global__ void softmax(const float* x, float* y, int rows, int cols) { *(volatile float*)8 = 1.0f; }"
    with pytest.raises(CheckFailed) as raised:
        check("softmax", softmax_by(crashing), dtypes=["float32"], quiet=True)
    assert raised.value.reason in ("sanitizer", "exception")


def test_a_variant_is_tried_on_what_it_accepts_and_the_rest_is_counted(capsys):
    fn = softmax_by(SCALE_ROWS.replace("GUARD", ">=").replace("LAST", "cols"))
    refuse = lambda x: None if x.dtype == torch.float32 and x.is_contiguous() else f"takes contiguous float32, not {x.dtype}"
    report = check("softmax", Variant("only_float", fn, "none", accepts=refuse), seeds=[0])
    assert sum(report.left_out.values()) + report.passed >= 40 and report.passed >= 18
    assert "  not tried: 21 cases, takes contiguous float32, not torch.bfloat16" in capsys.readouterr().out or torch.cuda.is_available()
    with pytest.raises(ValueError, match="accepts no case of softmax: never"):
        check("softmax", Variant("none", fn, "none", accepts=lambda x: "never"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="only the CPU has a time limit")
def test_cases_left_out_for_time_are_counted(monkeypatch):
    clock = iter(range(0, 10_000, 5))
    monkeypatch.setattr(check_module.time, "perf_counter", lambda: float(next(clock)))
    report = check("sum", torch.sum, quiet=True)
    assert report.left_out == {"stopped after 120 s": 34 - report.passed} and 0 < report.passed < 34
