"""Checks of what is no operation: one line of PyTorch says what is right, and the operations' judge does the rest."""

import pytest
import torch

from labkernels.cuda import Kernel
from labkernels.errors import ArgumentError
from labkernels.lab.check_against import check_against
from labkernels.lab.failure import CheckFailed

CASES = [{"x": (n,), "y": (n,), "a": 2.5} for n in (1, 3, 33, 1000)]


def saxpy(x, y, a):
    return a * x + y


def failure_of(reference, fn, cases, **options) -> CheckFailed:
    with pytest.raises(CheckFailed) as raised:
        check_against(reference, fn, cases, quiet=True, **options)
    return raised.value


def test_a_right_function_passes_every_case_and_one_line_says_so(capsys):
    def my_saxpy(x, y, a):
        return torch.add(y, x, alpha=a)

    assert check_against(saxpy, my_saxpy, CASES).passed == 4
    assert capsys.readouterr().out == "my_saxpy: 4 cases passed\n"


def test_the_inputs_are_random_and_an_option_reaches_the_function():
    seen = []

    def keeps(x, y, a):
        seen.append((x.clone(), y.clone(), a))
        return a * x + y

    check_against(saxpy, keeps, CASES[-1:], quiet=True, isolated=False)
    x, y, a = seen[0]
    assert a == 2.5 and x.std() > 0.5 and y.std() > 0.5 and not torch.equal(x, y)


def test_zeros_fail():
    assert failure_of(saxpy, lambda x, y, a: torch.zeros_like(x), CASES).reason == "mismatch"


def test_a_mistake_that_was_foreseen_is_named():
    failure = failure_of(saxpy, lambda x, y, a: x + y, CASES, mistakes={"a * x: y is not added": lambda x, y, a: a * x, "x + y: a is missing": lambda x, y, a: x + y})
    assert failure.reason == "mismatch" and failure.where == "index 0"
    assert failure.hint == "Your result is x + y: a is missing."


def test_the_axes_of_a_matrix_are_rows_and_columns():
    failure = failure_of(lambda x: x.t(), lambda x: torch.cat([x.t()[:-1], x.t()[:1]]), [{"x": (3, 5)}])
    assert failure.reason == "mismatch" and failure.where == "row 4, col 0"


def test_axes_before_rows_and_columns_go_by_number():
    def last_matrix_doubled(x):
        result = x + 1
        result[1, 2] *= 2
        return result

    failure = failure_of(lambda x: x + 1, last_matrix_doubled, [{"x": (2, 3, 4, 5)}])
    assert failure.where == "axis 0: 1, axis 1: 2, row 0, col 0"
    assert str(failure.error_map).startswith("axis 0: 1, axis 1: 2, one mark for each element")


@pytest.mark.parametrize("fn, hint", [
    (lambda x, y, a: torch.zeros_like(x), "zero everywhere"),
    (lambda x, y, a: y.clone(), "y itself"),
    (lambda x, y, a: -a * x - y, "the right one with the other sign"),
    (lambda x, y, a: 2 * (a * x + y), "exactly twice the right one"),
    (lambda x, y, a: (a * x + y).flip(0), "the right one backwards"),
])  # fmt: skip
def test_what_anybody_gets_wrong_is_recognised(fn, hint):
    assert failure_of(saxpy, fn, [{"x": (33,), "y": (33,), "a": 2.5}]).hint.startswith(f"Your result is {hint}")


def test_a_transposed_square_is_recognised_and_another_mistake_is_not_taken_for_one():
    square = [{"x": (7, 7)}]
    assert "rows and columns have changed places" in failure_of(lambda x: 2 * x, lambda x: 2 * x.t(), square).hint
    assert failure_of(lambda x: 2 * x, lambda x: x * 1.5, square).hint is None


def test_a_mistake_that_takes_other_arguments_is_refused_at_once():
    with pytest.raises(ArgumentError, match="mistake 'x alone' must take what the reference takes"):
        check_against(saxpy, saxpy, CASES, mistakes={"x alone": lambda x: x})


def test_a_kernel_meets_the_sanitizer_on_small_cases_first():
    kernel = Kernel("""__global__ void shift(const float* x, float* out, int n) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        out[i] = x[i];
    }""", "shift")

    def copy(x):
        out = torch.empty_like(x)
        kernel(-(-x.numel() // 32), 32, (x, out, x.numel()))
        return out

    failure = failure_of(lambda x: x + 0, copy, [{"x": (33,)}])
    assert failure.reason == "sanitizer" and "out_of_bounds" in failure.detail and "x[33]" in failure.detail


def test_unwritten_elements_and_a_changed_input_are_told_apart():
    assert failure_of(lambda x: 2 * x, torch.empty_like, [{"x": (5,)}]).reason == "not_written"
    assert failure_of(lambda x: 2 * x, lambda x: x.mul_(2), [{"x": (5,)}]).reason == "input_modified"


@pytest.mark.parametrize("case, complaint", [({"x": (3,)}, "takes x, y, a"), ({"x": 1, "y": 2, "a": 3}, "without a tensor")])
def test_a_case_that_does_not_fit_the_reference_is_refused(case, complaint):
    with pytest.raises(ArgumentError, match=complaint):
        check_against(saxpy, saxpy, [case])
