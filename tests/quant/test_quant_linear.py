"""lk.nn.QuantLinear and torch.ops.labkernels.quant_matmul: the layer is nn.Linear with another weight."""

import pytest
import torch
from torch import nn

import labkernels as lk
import labkernels.torch_extension  # noqa: F401  defines the operator
from labkernels.errors import ArgumentError
from labkernels.quant import quantize
from labkernels.quant.accuracy import output_error

K, N = 96, 20
SCHEMES = [("int4", 32, False), ("nf4", 32, True), ("int8", None, True), ("fp8", None, False)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def linear(bias=True):
    return nn.Linear(K, N, bias=bias)


@pytest.mark.parametrize("scheme, group_size, bias", SCHEMES)
def test_it_is_the_linear_layer_with_the_stored_weight(scheme, group_size, bias):
    dense = linear(bias)
    layer = lk.nn.QuantLinear.from_linear(dense, scheme, group_size)
    x = torch.randn(2, 3, K)
    want = nn.functional.linear(x, layer.weight.dequantize(), dense.bias)
    torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-5)
    assert (layer(x) - dense(x)).norm() < 0.15 * dense(x).norm()


def test_bfloat16_and_one_row():
    layer = lk.nn.QuantLinear.from_linear(linear(), "int4", 32).to(torch.bfloat16)
    x = torch.randn(K).bfloat16()
    want = nn.functional.linear(x.float(), layer.weight.dequantize(), layer.bias.float())
    assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x).float(), want, rtol=2e-2, atol=2e-2)


def test_calibration_lowers_the_error_at_the_output():
    mix = torch.randn(K, K) * torch.logspace(0, -2, K)[:, None]
    calibration, judged = torch.randn(2, 300, K) @ mix
    dense = linear()
    nearest, gptq = (lk.nn.QuantLinear.from_linear(dense, "int4", 32, calibration=given) for given in (None, calibration))
    assert output_error(dense.weight.detach(), gptq.weight, judged) < 0.7 * output_error(dense.weight.detach(), nearest.weight, judged)


@pytest.mark.parametrize("scheme, group_size, bias", SCHEMES)
def test_it_saves_and_loads(scheme, group_size, bias):
    layer = lk.nn.QuantLinear.from_linear(linear(bias), scheme, group_size)
    again = lk.nn.QuantLinear(K, N, scheme, group_size, bias)
    assert again.weight.dequantize().eq(0).all()
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.weight.dequantize(), layer.weight.dequantize())
    assert scheme in repr(layer)


def test_dtypes_of_the_weight_stay_what_they_are():
    for scheme in ("int4", "nf4", "int8", "fp8"):
        layer = lk.nn.QuantLinear.from_linear(linear(), scheme)
        before = layer.weight.dequantize()
        layer = nn.Sequential(layer).half().bfloat16()[0]
        assert layer.bias.dtype == torch.bfloat16 and torch.equal(layer.weight.dequantize(), before)


def test_gradients_reach_x():
    layer = lk.nn.QuantLinear.from_linear(linear(), "int4", 32)
    x = torch.randn(4, K, requires_grad=True)
    layer(x).square().sum().backward()
    own = x.grad
    y = nn.functional.linear(x.detach().requires_grad_(), layer.weight.dequantize(), layer.bias.detach())
    torch.testing.assert_close(own, 2 * y.detach() @ layer.weight.dequantize(), rtol=1e-4, atol=1e-4)


def test_opcheck():
    for scheme, group_size, _ in SCHEMES[:3]:
        weight = quantize(torch.randn(17, 64), scheme, group_size)
        x = torch.randn(2, 64, requires_grad=True)
        parts = weight.packed, weight.scales, weight.codebook, weight.scheme, weight.group_size, *weight.shape
        torch.library.opcheck(torch.ops.labkernels.quant_matmul.default, (x, *parts), test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))


def test_the_graph_has_one_operator():
    layer = lk.nn.QuantLinear.from_linear(linear(), "int4", 32)
    x = torch.randn(3, K)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.gpu
def test_it_compiles_for_the_gpu_and_into_a_graph():
    layer = lk.nn.QuantLinear.from_linear(nn.Linear(512, 300).cuda(), "int4").to(torch.bfloat16)
    x = torch.randn(2, 512, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        want = layer(x)
        torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), want)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(layer(x)[:, :1].expand(2, 512))
        for scale in (1.0, -2.0):
            x.normal_().mul_(scale)
            graph.replay()
            torch.testing.assert_close(y, layer(layer(x)[:, :1].expand(2, 512)))


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", ["int4", "nf4", "int8"])
def test_early_launches_see_what_was_written_before_them(scheme):
    """A chain in which each product needs the one before, and weights that change between."""
    layer = lk.nn.QuantLinear.from_linear(nn.Linear(4096, 4096, bias=False).cuda(), scheme).to(torch.bfloat16)
    x = torch.randn(1, 4096, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        for turn in range(20):
            y = x
            for _ in range(10):
                y = layer(y)
            dense, want = layer.weight.dequantize(torch.float64), x.double()
            for _ in range(10):
                want = (want @ dense.t()).to(torch.bfloat16).double()
            assert (y.double() - want).norm() < 0.05 * want.norm()
            layer.scales.mul_(-1 if scheme != "int4" else 1)
            layer.packed.copy_(layer.packed.roll(1, 0))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: lk.nn.QuantLinear(0, 4), "QuantLinear: in_features is 0; it must be an int of at least 1"),
        (lambda: lk.nn.QuantLinear(8, 4, "int3"), "QuantLinear: scheme is 'int3'"),
        (lambda: lk.nn.QuantLinear(8, 4, "int4", 48), "group_size is 48; for int4 it must be 32, 64, 128"),
        (lambda: lk.nn.QuantLinear(8, 4, "int8", 32), "group_size is 32; for int8 it must be None"),
        (lambda: lk.nn.QuantLinear(8, 4)(torch.ones(2, 9)), r"x has shape \(2, 9\); it must be \(..., in_features = 8\)"),
        (lambda: lk.nn.QuantLinear.from_linear(nn.Conv1d(1, 1, 1)), "linear is a Conv1d; it must be an nn.Linear"),
        (lambda: lk.nn.QuantLinear.from_weight(quantize(torch.ones(4, 8)), torch.ones(5)), r"bias has shape \(5,\); it must be \(4,\)"),
    ],
)
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ArgumentError, match=words):
        call()
