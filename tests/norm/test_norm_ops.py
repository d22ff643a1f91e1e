"""The operations of norm/: their references against PyTorch's own, their bytes, their refusals, and the classic mistakes by name."""

import pytest
import torch
import torch.nn.functional as F

import labkernels as lk
from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed
from labkernels.norm import reference


def normal(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def test_references_are_pytorchs_norms():
    x, weight, bias = normal(5, 33), normal(33), normal(33) + 1
    torch.testing.assert_close(reference.rms_norm(x, weight, 1e-3), F.rms_norm(x, (33,), weight, 1e-3))
    torch.testing.assert_close(reference.layer_norm(x, weight, bias, 1e-3), F.layer_norm(x, (33,), weight, bias, 1e-3))
    torch.testing.assert_close(reference.layer_norm(x), F.layer_norm(x, (33,)))
    y, total = reference.add_rms_norm(x, 2 * x, weight, bias, 1e-3)
    torch.testing.assert_close((y, total), (F.rms_norm(3 * x + bias, (33,), weight, 1e-3), 3 * x + bias))


@pytest.mark.parametrize("with_weight", [True, False])
def test_gradients_are_those_of_autograd(with_weight):
    x, weight, bias = (normal(*shape).requires_grad_() for shape in ((7, 20), (20,), (20,)))
    grad, more = normal(7, 20) + 1, normal(7, 20)
    given = weight if with_weight else None
    factor = weight if with_weight else torch.ones_like(weight) + 0 * weight
    want = torch.autograd.grad(reference.layer_norm(x, factor, bias), (x, weight, bias), grad)
    got = reference.layer_norm_backward(grad, x, given)
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(got[2], want[2])
    if with_weight:
        torch.testing.assert_close(got[1], want[1])
    want = torch.autograd.grad(reference.rms_norm(x, given), (x,), grad)[0] + more
    torch.testing.assert_close(reference.rms_norm_backward(grad, x, given, grad_sum=more)[0], want)


def test_bytes_are_those_that_must_move():
    rows, cols, bf16 = 10, 8, torch.bfloat16
    assert lk.ops["rms_norm"].bytes_moved(bf16, rows=rows, cols=cols) == 2 * (80 + 80 + 8)
    assert lk.ops["layer_norm"].bytes_moved(torch.float32, rows=rows, cols=cols) == 4 * (80 + 80 + 16)
    assert lk.ops["add_rms_norm"].bytes_moved(bf16, rows=rows, cols=cols) == 2 * (4 * 80 + 8)
    assert lk.ops["rms_norm_quantized"].bytes_moved(bf16, rows=rows, cols=cols) == 2 * (80 + 8) + 80 + 40
    assert lk.ops["rms_norm_backward"].bytes_moved(bf16, rows=rows, cols=cols, grad_sum=True) == 2 * (4 * 80 + 16)
    assert lk.ops["layer_norm_backward"].bytes_moved(bf16, rows=rows, cols=cols) == 2 * (3 * 80 + 24)


@pytest.mark.parametrize(
    "name, inputs, message",
    [
        ("rms_norm", {"x": torch.ones(3)}, r"rms_norm: x has shape \(3,\); it must have two axes"),
        ("rms_norm", {"x": torch.ones(3, 4).double()}, "rms_norm: x is float64; it must be float32, bfloat16 or float16"),
        ("rms_norm", {"x": torch.ones(3, 4), "weight": torch.ones(3)}, r"weight has shape \(3,\); it must be \(4,\)"),
        ("rms_norm", {"x": torch.ones(3, 4), "weight": torch.ones(4).half()}, "weight is float16, x is float32; it must be of x's dtype"),
        ("rms_norm", {"x": torch.ones(3, 4), "weight": torch.ones(8)[::2]}, "weight has stride 2"),
        ("rms_norm", {"x": torch.ones(3, 4), "eps": -1.0}, "eps is -1.0; it must be a number from 0 on"),
        ("layer_norm", {"x": torch.ones(3, 4), "bias": torch.ones(4, 1)}, r"layer_norm: bias has shape \(4, 1\)"),
        (
            "layer_norm",
            {"x": torch.ones(3, 4).half(), "weight": torch.ones(4), "bias": torch.ones(4).half()},
            "weight is float32 and bias is float16; both must be of one dtype",
        ),
        ("add_rms_norm", {"x": torch.ones(3, 4), "residual": torch.ones(4, 3)}, r"residual has shape \(4, 3\); it must be \(3, 4\)"),
        ("add_rms_norm", {"x": torch.ones(3, 4), "residual": torch.ones(3, 4).half()}, "residual is float16, x is float32; both must be the same"),
        ("add_rms_norm", {"x": torch.ones(3, 4).half(), "residual": torch.ones(3, 4).half(), "bias": torch.ones(4)}, "bias is float32"),
        ("rms_norm_quantized", {"x": torch.ones(3, 4), "dtype": torch.uint8}, "dtype is torch.uint8; it must be torch.float8_e4m3fn or torch.int8"),
        ("rms_norm_quantized", {"x": torch.ones(3, 4), "bias": torch.ones(4)}, "bias is given without a residual"),
        ("rms_norm_backward", {"grad_out": torch.ones(2, 4), "x": torch.ones(3, 4)}, r"grad_out has shape \(2, 4\); it must be \(3, 4\)"),
        ("layer_norm_backward", {"grad_out": torch.ones(3, 4, device="meta"), "x": torch.ones(3, 4)}, "grad_out is on meta, x is on cpu"),
    ],
)
def test_wrong_inputs_are_named(name, inputs, message):
    with pytest.raises(ArgumentError, match=message):
        lk.ops[name].run(**inputs)


def rms(x, eps=1e-5):
    return torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)


@pytest.mark.parametrize(
    "name, mistake, words",
    [
        ("rms_norm", lambda x, weight=1, eps=1e-5: x * rms(x, eps), "without the weight"),
        ("rms_norm", lambda x, weight=1, eps=1e-5: x * torch.rsqrt((x * x).sum(-1, keepdim=True) + eps) * weight, "the mean divides"),
        ("rms_norm", lambda x, weight=1, eps=1e-5: (x - x.mean(-1, keepdim=True)) * rms(x - x.mean(-1, keepdim=True), eps) * weight, "LayerNorm"),
        ("layer_norm", lambda x, weight=1, bias=0, eps=1e-5: x * rms(x, eps) * weight + bias, "subtracts the mean first"),
        (
            "layer_norm",
            lambda x, weight=1, bias=0, eps=1e-5: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + eps) * weight + bias,
            "cols - 1",
        ),
        ("add_rms_norm", lambda x, residual, weight=1, bias=0, eps=1e-5: (x * rms(x, eps) * weight, x + residual), "the norm of x alone"),
        (
            "rms_norm_backward",
            lambda grad_out, x, weight=1, eps=1e-5: (rms(x, eps) * grad_out * weight, (grad_out * x * rms(x, eps)).sum(0)),
            "a row's own length depends on x too",
        ),
        (
            "rms_norm_backward",
            lambda grad_out, x, weight, eps: (reference.rms_norm_backward(grad_out, x, weight, eps)[0], (grad_out * x).sum(0)),
            "x must be normalised",
        ),
        (
            "layer_norm_backward",
            lambda grad_out, x, weight, eps: (*reference.layer_norm_backward(grad_out, x, weight, eps)[:2], grad_out.mean(0)),
            "the mean over the rows",
        ),
    ],
)
def test_classic_mistakes_are_named(name, mistake, words):
    with pytest.raises(CheckFailed) as failure:
        check(name, mistake, dtypes=["float32"], rows=[3], cols=33, layout="contiguous", quiet=True)
    assert words in failure.value.hint


def test_a_quantised_norm_whose_scale_is_wrong_is_found():
    def scale_of_the_largest_of_all(x, weight, eps, dtype):
        values, scale = reference.quantized(reference.rms_norm(x, weight, eps), dtype)
        return values, scale.amax().expand(scale.shape)

    with pytest.raises(CheckFailed, match="mismatch"):
        check("rms_norm_quantized", scale_of_the_largest_of_all, dtypes=["float32"], rows=3, cols=33, quiet=True)
    with pytest.raises(CheckFailed, match="the result must be the tuple"):
        check("rms_norm_quantized", lambda x, weight, eps, dtype: reference.rms_norm(x, weight, eps), dtypes=["float32"], rows=3, cols=33, quiet=True)
