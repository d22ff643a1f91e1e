"""The operation `sum`: its inputs, its refusals, and the parts of a sum that the checker recognises."""

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed
from labkernels.sum.op import OP


@pytest.mark.parametrize("layout, stride, aligned", [("contiguous", 1, True), ("offset", 1, False), ("every_second", 2, True)])
def test_layouts(layout, stride, aligned):
    x = OP.make_inputs(torch.Generator().manual_seed(0), "cpu", torch.float32, n=33, layout=layout)["x"]
    assert x.shape == (33,) and x.stride() == (stride,) and (x.data_ptr() % 16 == 0) == aligned


def test_wrong_inputs_are_named():
    with pytest.raises(ArgumentError, match=r"sum: x has shape \(3, 3\); it must have one axis, \(n,\)"):
        OP.run(x=torch.ones(3, 3))
    with pytest.raises(ArgumentError, match="sum: x is int64; it must be float32"):
        OP.run(x=torch.arange(3))


@pytest.mark.parametrize(
    "wrong, hint",
    [
        (lambda x: x[:256].sum(), "the sum of the first 256 of 257 elements"),
        (lambda x: x[: x.numel() // 32 * 32 or 32].sum(), "the sum of the first 32 of 33 elements"),
        (lambda x: 2 * x.sum() if x.numel() > 3 else x.sum(), "exactly twice the sum"),
        (lambda x: x[1 if x.numel() > 3 else 0 :].sum(), "without the first 1 of 31 elements"),
    ],
)
def test_parts_of_the_sum_are_recognised(wrong, hint):
    shapes = {"n": [1, 2, 33, 257]} if "257" in hint or "33" in hint else {}
    with pytest.raises(CheckFailed) as raised:
        check("sum", wrong, quiet=True, **shapes)
    assert raised.value.reason == "mismatch" and hint in (raised.value.hint or ""), str(raised.value)


def test_another_order_of_addition_is_right():
    assert check("sum", lambda x: x[torch.randperm(x.numel(), device=x.device)].sum(), quiet=True).passed > 20


def test_a_missing_element_is_found_in_every_size():
    for n in (shape["n"] for shape in OP.check_shapes if "magnitude" not in shape and shape["n"] > 1):
        with pytest.raises(CheckFailed):
            check("sum", lambda x: x[:-1].sum(), n=n, quiet=True)
