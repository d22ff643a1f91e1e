"""Round to nearest, searched scales, GPTQ: each better than the one before, at what it is for."""

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.quant import quantize, quantize_gptq, quantizers
from labkernels.quant.accuracy import accuracy_table, output_error, weight_error
from labkernels.quant.gptq import hessian
from labkernels.quant.quantizers import find_scales, restored, round_to

K = 160


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def weight(generator):
    return 0.05 * torch.randn(24, K, generator=generator)


@pytest.fixture
def inputs(generator):
    """Correlated, as activations are, a few channels large; half to calibrate with, half to judge by."""
    mix = torch.randn(K, K, generator=generator) * torch.logspace(0, -2, K)[:, None]
    return (torch.randn(800, K, generator=generator) @ mix).chunk(2)


@pytest.mark.parametrize("scheme, group_size", [("int4", 32), ("int4", 128), ("nf4", 64), ("int8", None)])
def test_numbers_are_the_nearest(scheme, group_size, weight):
    q = quantize(weight, scheme, group_size)
    error = (q.dequantize() - weight).abs()
    for step in (-1, 1):
        moved = q.numbers().int() + step
        if scheme == "int8":
            other = moved.clamp(-127, 127) * q.scales[:, None]
        else:
            scales = q.scales[..., 0] if scheme == "int4" else q.scales
            scale = scales.float().t().repeat_interleave(group_size, 1)[:, :K]
            zero = q.scales[..., 1].float().t().repeat_interleave(group_size, 1)[:, :K] if scheme == "int4" else 0
            other = scale * (moved.clamp(0, 15) - zero) if scheme == "int4" else scale * q.codebook[moved.clamp(0, 15)]
        assert (error <= (other - weight).abs() + 1e-6).all()


@pytest.mark.parametrize("scheme, group_size", [("int4", 32), ("int4", 128), ("nf4", 64), ("fp8", None)])
def test_searched_scales_err_less(scheme, group_size, weight):
    nearest, searched = quantize(weight, scheme, group_size), quantize(weight, scheme, group_size, search="mse")
    assert weight_error(weight, searched) < weight_error(weight, nearest)


def test_the_search_is_never_worse_in_any_group(generator):
    groups = torch.randn(8, 3, 32, generator=generator) ** 3
    for scheme in ("int4", "int8"):
        errors = []
        for search in ("absmax", "mse"):
            scales = find_scales(groups, scheme, search)
            errors.append((restored(round_to(groups, scales, scheme), scales, scheme) - groups).square().sum(-1))
        assert (errors[1] <= errors[0]).all()
        assert scheme == "int8" or (errors[1] < errors[0]).any()  # among 255 numbers the largest decides


@pytest.mark.parametrize("scheme, group_size", [("int4", 32), ("int4", 128), ("nf4", 64), ("int8", None), ("fp8", None)])
def test_gptq_errs_less_at_the_output(scheme, group_size, weight, inputs):
    calibration, judged = inputs
    best = min(output_error(weight, quantize(weight, scheme, group_size, search), judged) for search in ("absmax", "mse"))
    assert output_error(weight, quantize_gptq(weight, calibration, scheme, group_size), judged) < 0.7 * best


def test_gptq_takes_a_hessian_and_few_tokens(weight, inputs):
    calibration, judged = inputs
    of_inputs, of_hessian = (quantize_gptq(weight, given, "int4", 32) for given in (calibration, hessian(calibration)))
    assert torch.equal(of_inputs.packed, of_hessian.packed)
    few = quantize_gptq(weight, calibration[:3], "int4", 32)  # a Hessian of rank 3
    assert few.dequantize().isfinite().all()
    dead = calibration.clone()
    dead[:, 5] = 0
    assert quantize_gptq(weight, dead, "int4", 32).dequantize().isfinite().all()


def test_gptq_without_correlation_is_rounding_to_nearest(weight):
    unit = torch.eye(K)
    gptq, nearest = quantize_gptq(weight, unit, "int4", 32, search="absmax"), quantize(weight, "int4", 32)
    assert torch.equal(gptq.packed, nearest.packed) and torch.equal(gptq.scales, nearest.scales)


def test_a_wrong_order_of_corrections_would_be_seen(weight, inputs):
    """With the Hessian of other inputs GPTQ is worse than rounding: the test above can fail."""
    _, judged = inputs
    other = torch.randn(400, K, generator=torch.Generator().manual_seed(9)) @ torch.randn(K, K, generator=torch.Generator().manual_seed(10))
    wrong = quantize_gptq(weight, other, "int4", 32)
    assert output_error(weight, wrong, judged) > output_error(weight, quantize(weight, "int4", 32), judged)


def test_zeros_and_constant_rows_stay_finite():
    for scheme in ("int4", "nf4", "int8", "fp8"):
        w = torch.zeros(3, 40)
        w[1] = 2.0
        got = quantize(w, scheme).dequantize()
        assert got[0].eq(0).all() and got.isfinite().all()
        torch.testing.assert_close(got[1], w[1], rtol=0.01, atol=0)


def test_any_codebook(weight):
    codebook = torch.linspace(-1, 1, 16) ** 3
    q = quantize(weight, "codebook", 32, codebook=codebook)
    assert set(q.codebook.tolist()) == set(codebook.tolist()) and weight_error(weight, q) < 0.2


def test_the_table_has_every_scheme_and_quantizer(weight, inputs):
    table = accuracy_table(weight, inputs[1], inputs[0], [("int8", None), ("int4", 128)])
    assert list(zip(table["scheme"], table["quantizer"])) == [("int8", "nearest"), ("int8", "mse"), ("int4", "nearest"), ("int4", "mse"), ("int4", "gptq")]
    by_name = table.set_index(["scheme", "quantizer"])["output_error"]
    assert by_name["int8", "nearest"] < by_name["int4", "gptq"] < by_name["int4", "nearest"]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda w: quantize(w, "int3"), "quantize: scheme is 'int3'"),
        (lambda w: quantize(w[0]), r"quantize: weight is torch.float32 of shape \(160,\)"),
        (lambda w: quantize(w.int()), "it must be floating"),
        (lambda w: quantize(w[:, :0]), r"weight has shape \(24, 0\); there is nothing to quantise"),
        (lambda w: quantize(w, "int8", 32), "int8 has one scale a row"),
        (lambda w: quantize(w, "int4", 48), "group_size is 48"),
        (lambda w: quantize(w, search="best"), "search is 'best'"),
        (lambda w: quantize(w, "codebook"), "codebook is missing"),
        (lambda w: quantize(w, "nf4", codebook=w[0, :16]), "codebook is given"),
        (lambda w: quantize(w, "codebook", codebook=w[0, :15]), "it must be 16 floating numbers"),
        (lambda w: quantize_gptq(w, w[:, :5]), "quantize_gptq: calibration is"),
        (lambda w: quantize_gptq(w, w * torch.nan), "calibration has numbers that are not finite"),
    ],
)
def test_what_cannot_be_quantised_is_named(call, words, weight):
    with pytest.raises(ArgumentError, match=words):
        call(weight)


@pytest.mark.parametrize("scheme", ["int8", "fp8", "int4", "nf4"])
def test_many_rows_are_quantised_some_at_a_time_and_give_the_same(scheme, monkeypatch):
    """A head of 128256 x 4096 in float32, four times over, would not fit beside its model at int4 on a card of 12 GB."""
    weight = torch.randn(77, 200, generator=torch.Generator().manual_seed(3))
    whole = quantizers.quantize(weight, scheme)
    seen = []
    monkeypatch.setattr(quantizers, "AT_ONCE", 10 * 256)
    monkeypatch.setattr(quantizers, "find_scales", lambda groups, *rest, real=quantizers.find_scales: seen.append(len(groups)) or real(groups, *rest))
    pieces = quantizers.quantize(weight, scheme)
    assert len(seen) > 5 and max(seen) <= 13
    assert torch.equal(pieces.packed.view(torch.uint8), whole.packed.view(torch.uint8)) and torch.equal(pieces.scales, whole.scales)
    assert pieces.shape == whole.shape and torch.equal(pieces.dequantize(), whole.dequantize())
