"""The operation `symmetric_matmul`: what it computes, how wrong inputs are named, what its variants store and refuse."""

import pytest
import torch

import labkernels as lk
from labkernels.errors import ArgumentError
from labkernels.symmetric_matmul import symmetric_matmul
from labkernels.symmetric_matmul.op import OP, make_inputs

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def inputs(m=24, k=40, batch=None, c=False, device="cpu", dtype=torch.bfloat16, **options):
    return make_inputs(torch.Generator().manual_seed(m + k), device, dtype, m=m, k=k, batch=batch, c=c, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [None, 3])
def test_the_public_function_is_the_formula(batch, device):
    x = inputs(batch=batch, c=True, alpha=2.0, beta=-0.5, device=device)
    want = 2.0 * (x["x"].double() @ x["x"].double().mT) - 0.5 * x["c"].double()
    torch.testing.assert_close(symmetric_matmul(**x).double(), want, rtol=2**-7, atol=0.05)
    torch.testing.assert_close(OP.native(**x).double(), want, rtol=2**-7, atol=0.05)
    assert lk.functional.symmetric_matmul is symmetric_matmul


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", list(OP.variants))
@pytest.mark.parametrize("m", [8, 136, 264])
def test_both_triangles_are_the_same_bits(variant, m, device):
    result = OP.variants[variant].fn(**inputs(m, 72, 2, True, device))
    assert torch.equal(result, result.mT) and result.isfinite().all() and result.any()


def test_the_hopper_version_computes_the_upper_tiles_alone():
    """A c whose lower triangle is nonsense changes nothing outside the diagonal's tiles."""
    x = inputs(256, 64, c=True)
    nonsense = x["c"].clone()
    nonsense[128:, :128] = 1e9
    assert torch.equal(OP.variants["v3_hopper"].fn(**x), OP.variants["v3_hopper"].fn(**{**x, "c": nonsense}))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"x": torch.zeros(3)}, r"x has shape \(3,\); it must have two or three axes"),
        ({"x": torch.zeros(3, 4, dtype=torch.int32)}, "x is int32"),
        ({"x": torch.zeros(4, 3).t()}, "x has strides"),
        ({"c": torch.zeros(24, 40, dtype=torch.bfloat16)}, r"c has shape \(24, 40\); the result has \(24, 24\)"),
        ({"c": torch.zeros(24, 24)}, "c is float32, x is bfloat16"),
        ({"alpha": "2"}, "alpha is '2'; it must be a number"),
    ],
)
def test_wrong_inputs_are_named(change, words):
    with pytest.raises(ArgumentError, match=f"symmetric_matmul: {words}"):
        symmetric_matmul(**{**inputs(), **change})


def test_one_triangle_alone_is_told_by_name():
    def upper(x, c=None, alpha=1.0, beta=1.0):
        return OP.reference(x.float(), None if c is None else c.float(), alpha, beta).triu().to(x.dtype)

    with pytest.raises(lk.CheckFailed, match="One triangle of your result is zero"):
        lk.check("symmetric_matmul", upper)


def test_what_hopper_cannot_take_is_refused():
    accepts = OP.variants["v3_hopper"].accepts
    assert accepts(**inputs(24, 40)) is None
    for other, reason in ((inputs(33, 40), "multiples of 8"), (inputs(dtype=torch.float32), "bfloat16"), (inputs(24, 40, gap=3), "16 bytes")):
        assert reason in accepts(**other)


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what a machine without a GPU shows")
def test_its_recorded_figures_are_found_without_a_batch_and_with_one():
    for options in ({"m": [8192]}, {"m": [1536], "k": [4096], "batch": [24], "c": [True]}):
        table = lk.bench("symmetric_matmul", ["v3_hopper", "cublas"], **options)
        assert table.frame["ms"].notna().all() and "nan" not in repr(table)
