"""The operation `scaled_matmul`: what it computes, how wrong inputs are named, what PyTorch's own makes of sizes that it does not take."""

import pytest
import torch

import labkernels as lk
from labkernels.errors import ArgumentError
from labkernels.scaled_matmul import scaled_matmul
from labkernels.scaled_matmul.op import FLOAT8, OP, make_inputs

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def inputs(m=6, n=8, k=32, device="cpu", dtype=torch.bfloat16, **options):
    return make_inputs(torch.Generator().manual_seed(m + n + k), device, dtype, m=m, n=n, k=k, **options)


def widened(x: dict) -> torch.Tensor:
    """The result in float64, from what the scaled numbers stand for."""
    a, b = x["a"].double() * x["scale_a"].double().reshape(-1, 1), x["b"].double() * x["scale_b"].double().reshape(1, -1)
    return a @ b + (0 if x["bias"] is None else x["bias"].double())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scales", ["rows", "tensor", "mixed"])
def test_the_reference_is_the_product_of_what_the_numbers_stand_for(scales, device):
    x = inputs(device=device, scales=scales, bias=True)
    doubled = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in x.items()}
    torch.testing.assert_close(OP.reference(**doubled), widened(x))
    assert x["a"].dtype == x["b"].dtype == FLOAT8 and x["b"].stride(0) == 1
    assert x["a"].float().abs().max() == 448 and (scales == "tensor") == (x["scale_a"].dim() == 0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{}, {"scales": "tensor"}, {"scales": "mixed", "bias": True}, {"gap": 3}, {"gap": 16, "bias": True}])
def test_pytorchs_own_takes_every_size(options, device):
    for m, n, k in ((1, 1, 1), (5, 7, 30), (16, 32, 64), (3, 4, 0), (0, 4, 5)):
        x = inputs(m, n, k, device, **options)
        torch.testing.assert_close(OP.native(**x).double(), widened(x), rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
def test_the_public_function(out_dtype, device):
    for sizes in ((6, 8, 32), (5, 7, 30), (0, 8, 16), (4, 3, 0)):
        x = inputs(*sizes, device, out_dtype, bias=True)
        result = scaled_matmul(**x)
        assert result.dtype == out_dtype and result.is_contiguous()
        torch.testing.assert_close(result.double(), widened(x), rtol=2**-7, atol=1e-2)
        shaped = {**x, "scale_a": x["scale_a"].reshape(-1), "scale_b": x["scale_b"].reshape(-1)}
        torch.testing.assert_close(lk.functional.scaled_matmul(**shaped), result, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"a": lambda x: x.bfloat16()}, "a is bfloat16; it must be float8_e4m3fn"),
        ({"b": lambda x: x.to(torch.float8_e5m2)}, "b is float8_e5m2; it must be float8_e4m3fn"),
        ({"a": lambda x: x[0]}, r"a has shape \(32,\); it must have two axes, \(m, k\)"),
        ({"b": lambda x: x[1:]}, "b has 31 rows, a has 32 columns"),
        ({"b": lambda x: x.contiguous()}, r"the columns of b must be dense in memory \(stride 1\), as those of weight.t\(\) are"),
        ({"a": lambda x: x.t().contiguous().t()}, "the rows of a must be dense"),
        ({"scale_a": lambda x: x.double()}, "scale_a is float64; it must be float32"),
        ({"scale_a": lambda x: x[1:]}, r"scale_a has shape \(5, 1\); it must have one number a row of a, \(6, 1\) or \(6,\), or one"),
        ({"scale_b": lambda x: x.t()}, r"scale_b has shape \(8, 1\); it must have one number a column of b, \(1, 8\) or \(8,\)"),
        ({"bias": lambda x: x[1:]}, r"bias has shape \(7,\); it must be \(8,\)"),
        ({"bias": lambda x: x.float()}, "bias is float32; it must be of out_dtype, bfloat16"),
        ({"bias": lambda x: x.expand(2, 8).t().contiguous()[:, 0]}, "bias has stride 2"),
        ({"out_dtype": lambda x: torch.float32}, "out_dtype is torch.float32; it must be torch.bfloat16 or torch.float16"),
        ({"scale_a": lambda x: x.to("meta")}, "scale_a is on meta, a is on cpu"),
    ],
)
def test_wrong_inputs_are_named(change, words):
    x = inputs(bias=True)
    with pytest.raises(ArgumentError, match=f"scaled_matmul: .*{words}"):
        scaled_matmul(**{**x, **{name: wrong(x[name]) for name, wrong in change.items()}})
