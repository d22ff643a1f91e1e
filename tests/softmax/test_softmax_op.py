"""The operation `softmax`: its reference, its inputs, its refusals."""

import pytest
import torch

from labkernels.errors import ArgumentError
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
