"""The operation `softmax`: its reference, its inputs, its refusals."""

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed
from labkernels.softmax.op import OP, reference


@pytest.mark.parametrize("shape", OP.check_shapes, ids=str)
def test_reference_agrees_with_pytorch(shape):
    x = OP.make_inputs(torch.Generator().manual_seed(0), "cpu", torch.float64, **shape)["x"]
    torch.testing.assert_close(reference(x), torch.softmax(x, dim=-1))


@pytest.mark.parametrize("mask", ["start", "causal", "scattered"])
@pytest.mark.parametrize("rows, cols", [(1, 1), (4, 33), (40, 40), (3, 200)])
def test_masked_rows_keep_a_finite_element(mask, rows, cols):
    x = OP.make_inputs(torch.Generator().manual_seed(0), "cpu", torch.float32, rows=rows, cols=cols, mask=mask)["x"]
    assert x.isfinite().any(dim=1).all()
    assert cols == 1 or x.isinf().any()


@pytest.mark.parametrize("layout", ["transposed", "every_second"])
@pytest.mark.parametrize("dtype", OP.dtypes)
def test_strided_layouts_are_strided(layout, dtype):
    x = OP.make_inputs(torch.Generator().manual_seed(0), "cpu", dtype, rows=6, cols=50, layout=layout)["x"]
    assert x.shape == (6, 50) and not x.is_contiguous()


def test_wrong_inputs_are_named():
    with pytest.raises(ArgumentError, match=r"softmax: x has shape \(3,\); it must have two axes, \(rows, cols\)"):
        OP.run(x=torch.ones(3))
    with pytest.raises(ArgumentError, match="softmax: x is float64; it must be float32 or bfloat16"):
        OP.run(x=torch.ones(3, 3, dtype=torch.float64))


def test_sweeps_hold_the_number_of_elements():
    for cols in (256, 65_536):
        shape = OP.complete_shape(torch.float32, cols=cols)
        assert shape["rows"] * shape["cols"] == 2**26


def lanes_that_have_not_met(x):
    weights = (x - x.amax(dim=-1, keepdim=True)).exp()
    lane = torch.arange(x.shape[1], device=x.device) % 32
    return weights / torch.stack([weights[:, lane == i].sum(dim=1) for i in lane.tolist()], dim=1)


def sums_that_are_not_rescaled(x):
    return (x - x.amax(dim=-1, keepdim=True)).exp() / x.shape[1]


def lanes_of_nothing_but_minus_infinity(x):
    padded = torch.nn.functional.pad(x, (0, max(0, 32 - x.shape[1])), value=-torch.inf)
    lanes = [padded[:, i::32] for i in range(32)]
    totals = sum((lane - lane.amax(dim=1, keepdim=True)).exp().sum(dim=1, keepdim=True) for lane in lanes)
    return torch.softmax(x, dim=-1) + 0 * totals


def every_lane_walks_over_every_column(x):
    return torch.softmax(x, dim=-1) / 32


def maximum_begins_with_zero(x):
    weights = (x - x.amax(dim=-1, keepdim=True).clamp(min=0)).exp()
    return weights / weights.sum(dim=-1, keepdim=True)


@pytest.mark.parametrize(
    "mistake, words",
    [
        (lambda x: torch.softmax(x, dim=0), "each column instead of each row"),
        (lanes_that_have_not_met, "the 32 lanes have not met"),
        (sums_that_are_not_rescaled, "different maxima"),
        (every_lane_walks_over_every_column, "every lane has walked over every column"),
        (maximum_begins_with_zero, "begin with 0"),
        (lanes_of_nothing_but_minus_infinity, "a lane that gets no element still holds -inf"),
    ],
)
def test_classic_mistakes_are_named(mistake, words):
    with pytest.raises(CheckFailed) as failure:
        check("softmax", mistake, dtypes=["float32"], rows=[2, 3], mask="none", quiet=True)
    assert words in failure.value.hint
