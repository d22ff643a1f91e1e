"""An operation that gives several tensors: each is judged, and a failure says which one is wrong."""

import dataclasses

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed
from labkernels.lab.measure import _agrees
from labkernels.operation import Op, Tolerance


def halves(x, deterministic=False):
    """The sum and the product of x's halves."""
    left, right = x.chunk(2, dim=-1)
    return left + right, left * right


def make_inputs(generator, device, dtype, *, n, deterministic=False):
    return {"x": torch.randn(3, 2 * n, generator=generator).to(device, dtype), "deterministic": deterministic}


OP = Op(
    name="halves",
    summary="",
    load_variants=dict,
    reference=halves,
    native=halves,
    problem=lambda **inputs: None,
    make_inputs=make_inputs,
    axes=("row", "col"),
    results=("total", "product"),
    dtypes=(torch.float32, torch.bfloat16),
    small_shapes=(),
    check_shapes=({"n": 1}, {"n": 33}),
    tolerance=lambda dtype, **shape: Tolerance(1e-6, 1e-6),
)


def failure_of(fn, op=OP) -> CheckFailed:
    with pytest.raises(CheckFailed) as raised:
        check(op, fn, quiet=True, isolated=False)
    return raised.value


def test_a_right_function_passes():
    assert check(OP, halves, quiet=True, isolated=False).passed == 8
    assert check(OP, lambda x, **_: list(halves(x)), quiet=True, isolated=False).passed == 8


@pytest.mark.parametrize("which, name", list(enumerate(OP.results)))
def test_the_wrong_one_is_named(which, name):
    def wrong(x, deterministic=False):
        results = list(halves(x))
        results[which][2, -1] += 1
        return tuple(results)

    failure = failure_of(wrong)
    assert failure.reason == "mismatch" and failure.where == f"{name}, row 2, col 0"

    def transposed(x, deterministic=False):
        results = list(halves(x))
        results[which] = results[which].t()
        return tuple(results)

    failure = failure_of(transposed)
    assert failure.reason == "wrong_shape" and failure.where == name

    def unwritten(x, deterministic=False):
        results = list(halves(x))
        results[which] = torch.empty_like(results[which])
        return tuple(results)

    failure = failure_of(unwritten)
    assert failure.reason == "not_written" and failure.where == f"{name}, row 0, col 0"


def test_too_few_results():
    failure = failure_of(lambda x, **_: halves(x)[0])
    assert failure.reason == "wrong_shape" and "must be the tuple (total, product), got one Tensor" in str(failure)
    assert "got None" in str(failure_of(lambda x, **_: None))
    assert "got 3 of them" in str(failure_of(lambda x, **_: (*halves(x), x)))
    with pytest.raises(ArgumentError, match="halves: the result must be the tuple"):
        OP.each(torch.ones(1))


def test_an_operation_may_promise_equal_bits_only_where_asked():
    calls = []

    def fickle(x, deterministic=False):
        calls.append(x)
        return tuple(result + 1e-7 * (len(calls) % 2) for result in halves(x.float()))

    op = dataclasses.replace(OP, deterministic=False, dtypes=(torch.float32,))
    assert check(op, fickle, quiet=True, isolated=False).passed == 4
    asked = dataclasses.replace(op, check_shapes=({"n": 33, "deterministic": True},))
    failure = failure_of(fickle, asked)
    assert failure.reason == "nondeterministic" and failure.where.startswith("total, row")


def test_a_measured_result_must_agree_in_each_part():
    inputs = OP.make_inputs(torch.Generator().manual_seed(0), "cpu", torch.float32, n=40)
    total, product = halves(**inputs)
    agrees = lambda got: _agrees(OP, torch.float32, {"n": 40}, inputs, got)
    assert agrees((total, product)) and not agrees(total) and not agrees((total, total)) and not agrees((product, product))
