"""fp8 linear layers: the cast both ways round, the three products, what a model makes of them."""

import pytest
import torch

import labkernels as lk
from labkernels.cuda.variants import kernel
from labkernels.errors import ArgumentError
from labkernels.llm.training import fp8_cast as casts, fp8_linear
from labkernels.llm.config import ModelConfig
from labkernels.llm.training.fp8_linear import E4M3, E5M2, Fp8Linear, convert, fp8_cast, scale_of
from labkernels.llm.model import Transformer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("e5m2", [False, True])
@pytest.mark.parametrize("shape", [(16, 16), (144, 272), (128, 128), (32, 400)])
def test_the_cast_is_pytorchs_and_its_transpose(shape, e5m2, device):
    torch.manual_seed(0)
    x, dtype = torch.randn(shape).to(device, torch.bfloat16), E5M2 if e5m2 else E4M3
    scale = scale_of(x, dtype)
    values, turned = fp8_cast(x, scale, e5m2)
    largest = torch.finfo(dtype).max
    want = (x.float() * scale).clamp(-largest, largest).to(dtype)
    assert values.dtype == turned.dtype == dtype and values.float().abs().max() == largest
    assert torch.equal(values.float(), want.float()) and torch.equal(turned.float(), want.float().t())
    alone, nothing = fp8_cast(x[:, :16], scale, e5m2, False)
    assert torch.equal(alone.float(), want[:, :16].float()) and nothing.numel() == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows, n", [(16, 16), (144, 272), (128, 128)])
def test_the_gradient_of_swiglu_goes_to_fp8_both_ways_round(rows, n, device):
    torch.manual_seed(4)
    grad, gate_up = torch.randn(rows, n).to(device, torch.bfloat16), (3 * torch.randn(rows, 2 * n)).to(device, torch.bfloat16)
    gate, up = (each.double().requires_grad_() for each in gate_up.chunk(2, -1))
    (torch.nn.functional.silu(gate) * up).backward(grad.double())
    want = torch.cat([gate.grad, up.grad], -1)
    scale = torch.tensor(50.0, device=device)
    values, turned = fp8_linear.fp8_swiglu_backward(grad, gate_up, scale)
    assert values.shape == gate_up.shape and torch.equal(values.float(), turned.float().t())
    torch.testing.assert_close(values.double() / 50, want, rtol=2**-3 + 1e-3, atol=1e-6)


def test_the_cast_touches_whole_sectors_and_no_bank_twice():
    x, out = torch.randn(128, 256).bfloat16(), [torch.empty(128 * 256, dtype=torch.uint8) for _ in range(2)]
    cast = kernel(casts.FILE, "fp8_cast", x.dtype, "true")
    p = lk.profile(cast, (2, 1), 256, (x, 256, torch.tensor(2.0), *out, None, 128, 256))
    assert p.shared_load_conflicts == p.shared_store_conflicts == 0
    assert p.global_store_bytes == 2 * x.numel() and p.global_store_sectors == 2 * x.numel() // 32


def errors(layer, x, grad, weight):
    x = x.clone().requires_grad_()
    layer.weight.grad = None
    y = layer(x)
    y.backward(grad)
    exact = (x.detach().double() @ weight.double().t(), grad.double() @ weight.double(), grad.double().flatten(0, 1).t() @ x.detach().double().flatten(0, 1))
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip((y, x.grad, layer.weight.grad), exact)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scales", ["tensor", "row"])
def test_the_three_products_are_as_exact_as_fp8_is(scales, device):
    torch.manual_seed(1)
    layer = torch.nn.Linear(64, 96, bias=False, device=device, dtype=torch.bfloat16)
    layer.__class__, layer.scales = Fp8Linear, scales
    x, grad = (torch.randn(2, 32, size, device=device, dtype=torch.bfloat16) for size in (64, 96))
    found = errors(layer, x, grad, layer.weight.detach())
    assert all(error < 0.08 for error in found) and found[0] > 0.01  # fp8 indeed
    x[0, 0, 0] = 3e4  # one token spoils a tensor's scale, and with a scale a row itself alone
    spoilt = errors(layer, x, grad, layer.weight.detach())
    assert spoilt[2] < 0.3 and (scales == "tensor" or spoilt[0] < 0.08)


def test_tokens_that_are_no_multiple_of_16_are_multiplied_in_bfloat16():
    layer = torch.nn.Linear(16, 16, bias=False, dtype=torch.bfloat16)
    x = torch.randn(3, 16, dtype=torch.bfloat16)
    want = layer(x)
    layer.__class__ = Fp8Linear
    assert torch.equal(layer(x), want)


def test_a_model_learns_with_them_and_its_state_dict_is_the_same():
    torch.manual_seed(2)
    config = ModelConfig(vocab_size=64, embed_dim=32, num_layers=1, num_heads=2, num_kv_heads=1, ffn_dim=64)
    model, tokens = Transformer(config, dtype=torch.bfloat16), torch.randint(0, 64, (2, 16))
    names, before = list(model.state_dict()), model(tokens, tokens)
    before.backward()
    exact, before = {name: p.grad.clone() for name, p in model.named_parameters()}, before.item()
    convert(model)
    model.zero_grad()
    model(tokens, tokens).backward()
    for name, p in model.named_parameters():
        assert (p.grad - exact[name]).float().norm() < 0.15 * exact[name].float().norm(), name
    model.zero_grad()
    assert list(model.state_dict()) == names and sum(isinstance(layer, Fp8Linear) for layer in model.modules()) == 4
    assert model(tokens, tokens).item() == pytest.approx(before, rel=0.02)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(5):
        loss = model(tokens, tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.9 * before
    assert model.kernels["linear"] == model.kernels["ffn"] == "torch"


def test_what_cannot_be_converted_is_named():
    config = ModelConfig(vocab_size=64, embed_dim=24, num_layers=1, num_heads=2, num_kv_heads=1, ffn_dim=64)
    with pytest.raises(ArgumentError, match="multiples of 16"):
        convert(Transformer(config))
    with pytest.raises(ArgumentError, match="scales is 'column'"):
        fp8_linear.convert(Transformer(config), scales="column")
