"""lk.functional's norms, lk.nn's layers and torch.ops.labkernels': any axes, gradients, opcheck, torch.compile."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import labkernels as lk
from labkernels.errors import ArgumentError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ops = torch.ops.labkernels


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def normal(*shape, dtype=torch.float32, grad=True, device="cpu"):
    return torch.randn(shape).to(device, dtype).requires_grad_(grad)


def assert_same(got, want, tensors, tolerance=1e-5):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(got) + 1
    for got_grad, want_grad in zip(*(torch.autograd.grad((result * weight).sum(), tensors, retain_graph=True) for result in (got, want))):
        torch.testing.assert_close(got_grad, want_grad, rtol=tolerance, atol=tolerance * float(want_grad.abs().max()))


@pytest.mark.parametrize("shape", [(33,), (4, 33), (2, 3, 1024)])
def test_norms_of_any_axes_are_pytorchs(shape):
    x, weight, bias = normal(*shape, device=DEVICE), normal(shape[-1], device=DEVICE), normal(shape[-1], device=DEVICE)
    cols = shape[-1:]
    assert_same(lk.functional.rms_norm(x, weight, 1e-3), F.rms_norm(x, cols, weight, 1e-3), (x, weight))
    assert_same(lk.functional.rms_norm(x), F.rms_norm(x, cols, None, 1e-5), (x,))
    assert_same(lk.functional.layer_norm(x, weight, bias, 1e-3), F.layer_norm(x, cols, weight, bias, 1e-3), (x, weight, bias))
    assert_same(lk.functional.layer_norm(x, None, bias), F.layer_norm(x, cols, None, bias), (x, bias))


def test_strided_inputs_and_gradients():
    x, weight = normal(6, 4, device=DEVICE), normal(6, device=DEVICE)
    assert_same(lk.functional.rms_norm(x.t(), weight), F.rms_norm(x.t(), (6,), weight, 1e-5), (x, weight))
    with torch.no_grad():
        torch.testing.assert_close(lk.functional.layer_norm(x.t(), weight), F.layer_norm(x.t(), (6,), weight))
    lk.functional.rms_norm(x, None).sum().backward()  # an expanded gradient
    torch.testing.assert_close(x.grad, torch.autograd.grad(F.rms_norm(x, (4,), None, 1e-5).sum(), x)[0])


def test_the_residual_stream_carries_gradients_of_both_results():
    x, residual, weight, bias = normal(2, 3, 40, device=DEVICE), normal(2, 3, 40, device=DEVICE), normal(40, device=DEVICE), normal(40, device=DEVICE)
    y, total = lk.functional.add_rms_norm(x, residual, weight, bias)
    want_total = x + bias + residual
    want = F.rms_norm(want_total, (40,), weight, 1e-5)
    assert_same(y + 3 * total, want + 3 * want_total, (x, residual, weight, bias))
    assert_same(lk.functional.add_rms_norm(x, residual)[0], F.rms_norm(x + residual, (40,), None, 1e-5), (x, residual))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantised_norms(dtype):
    x, residual, weight = (normal(*shape, grad=False, device=DEVICE) for shape in ((2, 3, 64), (2, 3, 64), (64,)))
    values, scale = lk.functional.rms_norm_quantized(x, weight, dtype=dtype)
    assert values.dtype == dtype and values.shape == x.shape and scale.shape == (2, 3, 1)
    want = F.rms_norm(x, (64,), weight, 1e-5)
    torch.testing.assert_close(values.float() * scale, want, rtol=0.0635, atol=0.03)
    values, scale, total = lk.functional.rms_norm_quantized(x, weight, dtype=dtype, residual=residual)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(values.float() * scale, F.rms_norm(total, (64,), weight, 1e-5), rtol=0.0635, atol=0.03)


def test_what_scaled_matmul_takes():
    x, weight = normal(5, 32, grad=False).bfloat16(), normal(48, 32, grad=False)
    scale_b = weight.abs().amax(1) / 448
    values, scale = lk.functional.rms_norm_quantized(x)
    got = lk.functional.scaled_matmul(values, (weight / scale_b[:, None]).to(torch.float8_e4m3fn).t(), scale, scale_b[None])
    want = F.rms_norm(x.float(), (32,), None, 1e-5) @ weight.t()
    assert (got - want).norm() < 0.05 * want.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    x, weight, bias = normal(2, 3, 16, dtype=dtype), normal(16, dtype=dtype), normal(16, dtype=dtype)
    torch.library.opcheck(ops.rms_norm.default, (x, weight, 1e-5))
    torch.library.opcheck(ops.layer_norm.default, (x, weight, bias, 1e-5))
    torch.library.opcheck(ops.add_rms_norm.default, (x, normal(2, 3, 16, dtype=dtype), weight, bias, 1e-5))
    x, weight = x.detach(), weight.detach()
    torch.library.opcheck(ops.rms_norm_backward.default, (torch.randn_like(x), x, weight, 1e-5, torch.randn_like(x)))
    torch.library.opcheck(ops.layer_norm_backward.default, (torch.randn_like(x), x, weight))
    torch.library.opcheck(ops.rms_norm_quantized.default, (x, weight, 1e-5, torch.int8))
    torch.library.opcheck(ops.add_rms_norm_quantized.default, (x, torch.randn_like(x), None, weight, 1e-5, torch.int8))


@pytest.mark.parametrize("device", DEVICES)
def test_torch_compile_takes_them_whole(device):
    x, residual = normal(2, 5, 64, device=device), normal(2, 5, 64, device=device)
    rms, layer = lk.nn.RMSNorm(64, device=device), lk.nn.LayerNorm(64, device=device)

    def block(x, residual):
        y, total = rms(layer(x), residual)
        return y * 2 + total

    compiled = torch.compile(block, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    assert_same(compiled(x, residual), block(x, residual), (x, residual, *rms.parameters(), *layer.parameters()))
    quantised = torch.compile(lambda x: lk.functional.rms_norm_quantized(x, dtype=torch.int8), fullgraph=True, backend="aot_eager")
    x = x.detach()
    torch.testing.assert_close(quantised(x), lk.functional.rms_norm_quantized(x, dtype=torch.int8))


def test_layers_are_pytorchs():
    ours, theirs = lk.nn.RMSNorm(24, 1e-3, device=DEVICE), nn.RMSNorm(24, 1e-3, device=DEVICE)
    x = normal(3, 24, device=DEVICE)
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    assert_same(ours(x), theirs(x), (x,))
    ours, theirs = lk.nn.LayerNorm(24, device=DEVICE), nn.LayerNorm(24, device=DEVICE)
    nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    assert_same(ours(x), theirs(x), (x,))
    assert lk.nn.LayerNorm(8, bias=False).bias is None


def test_wrong_arguments_are_named():
    for layer in (lk.nn.RMSNorm, lk.nn.LayerNorm):
        with pytest.raises(ArgumentError, match="dim is 0; it must be an int of at least 1"):
            layer(0)
        with pytest.raises(ArgumentError, match=r"x has shape \(2, 5\); its last axis must be dim = 8"):
            layer(8)(torch.ones(2, 5))
    with pytest.raises(ArgumentError, match=r"x has shape \(\)"):
        lk.functional.rms_norm(torch.tensor(1.0))
    with pytest.raises(ArgumentError, match="rms_norm: weight has shape"):
        lk.functional.rms_norm(torch.ones(2, 5, requires_grad=True), torch.ones(4))
