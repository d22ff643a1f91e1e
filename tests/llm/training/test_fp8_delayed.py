"""fp8 with the scales of the steps before: what kernels leave behind, what becomes of it, and that a model learns with it."""

import pytest
import torch

from labkernels.llm.data.corpora import corpus
from labkernels.llm.data.shards import prepare
from labkernels.llm.config import ModelConfig
from labkernels.llm.model import Transformer
from labkernels.llm.training import fp8_cast as casts
from labkernels.llm.training.fp8_cast import E4M3, E5M2
from labkernels.llm.training.fp8_linear import convert
from labkernels.llm.training.fp8_scales import HISTORY, INVERSE, LARGEST, SCALE, DelayedScales
from labkernels.llm.training.train import TrainConfig, Trainer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CONFIG = ModelConfig(vocab_size=64, embed_dim=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=48)


@pytest.mark.parametrize("device", DEVICES)
def test_kernels_leave_the_largest_number_that_they_saw(device):
    torch.manual_seed(0)
    x = torch.randn(144, 272).to(device, torch.bfloat16)
    x[77, 200] = -9.0
    one, largest = torch.ones((), device=device), torch.zeros((), device=device)
    casts.cast(x, one, largest=largest)
    assert largest.item() == 9.0
    casts.cast(x[:16, :16], one, largest=largest)
    assert largest.item() == 9.0, "it only grows"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows, n", [(16, 16), (144, 272)])
def test_the_hidden_layer_is_the_same_forwards_and_backwards(rows, n, device):
    torch.manual_seed(1)
    gate_up, grad = (3 * torch.randn(rows, 2 * n)).to(device, torch.bfloat16), torch.randn(rows, n).to(device, torch.bfloat16)
    gate, up = gate_up.double().chunk(2, -1)
    want, scale, largest = torch.nn.functional.silu(gate) * up, torch.tensor(4.0, device=device), torch.zeros((), device=device)
    values = casts.swiglu(gate_up, scale, largest)
    torch.testing.assert_close(values.double() / 4, want, rtol=2**-4 + 1e-3, atol=2e-3)
    assert largest.item() == pytest.approx(want.abs().max().item(), rel=1e-5)
    inner, largest = torch.tensor(50.0, device=device), torch.zeros((), device=device)
    p, p_turned, hidden = casts.swiglu_gradient(grad, gate_up, inner, largest, scale)
    assert torch.equal(hidden.float().t(), values.float())
    alone, turned = casts.fp8_swiglu_backward(grad, gate_up, inner)
    assert torch.equal(p.float(), alone.float()) and torch.equal(p_turned.float(), turned.float())
    seen = torch.maximum((grad.double() * torch.nn.functional.silu(gate)).abs().max(), p.double().abs().max() / 50 / 1.2)
    assert largest.item() >= seen.item() * 0.99


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tokens, cols", [(16, 24), (48, 264), (80, 1536)])
def test_a_norm_writes_fp8_both_ways_round_and_its_gradients_are_the_norms(tokens, cols, device):
    torch.manual_seed(3)
    x, residual = (torch.randn(tokens, cols, device=device).bfloat16().requires_grad_() for _ in range(2))
    weight = torch.rand(cols, device=device).bfloat16().requires_grad_()
    scales = DelayedScales([E4M3], torch.device(device))
    args = x, residual, weight, 1e-5, scales.rows[0], scales.fresh
    carrier, total, values, turned = torch.ops.labkernels.fp8_add_rms_norm(*args, True)
    want, scale = torch.nn.functional.rms_norm((x + residual).double(), (cols,), weight.double(), 1e-5), scales.rows[0, SCALE]
    assert torch.equal(total, x + residual) and torch.equal(values.float().t(), turned.float()) and carrier.shape == x.shape
    torch.testing.assert_close(values.double() / scale, want, rtol=2**-4 + 1e-2, atol=2**-9 / scale.item())
    assert scales.rows[0, LARGEST].item() == pytest.approx(want.abs().max().item(), rel=1e-2)
    down, aside = torch.randn(2, tokens, cols, device=device).bfloat16()
    ours = torch.autograd.grad((carrier, total), (x, residual, weight), (down, aside))
    theirs = torch.autograd.grad((want, (x + residual).double()), (x, residual, weight), (down.double(), aside.double()))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2 * b.abs().max().item())


def test_a_scale_follows_the_largest_number_of_the_last_steps():
    scales = DelayedScales([E4M3, E5M2], torch.device("cpu"))
    assert scales.fresh.item()
    for largest in (2.0, 8.0, *[1.0] * (HISTORY - 1)):
        scales.rows[:, LARGEST] = largest
        scales.step()
        assert scales.rows[:, LARGEST].eq(0).all() and not scales.fresh.item()
    assert scales.rows[0, SCALE] == 448 / 8 and scales.rows[1, SCALE] == 57344 / 8 and scales.rows[0, INVERSE] == 8 / 448
    scales.rows[:, LARGEST] = 1.0
    scales.step()
    assert scales.rows[0, SCALE] == 448, "the 8 is forgotten"
    scales.rows[0, LARGEST], scales.rows[1, LARGEST] = float("inf"), 0.0
    scales.step()
    assert scales.rows[0, SCALE] == 448 and scales.rows[1, SCALE] == 57344, "what is not finite, or was not there, changes nothing"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for number in range(20):
        (folder / f"{number}.txt").write_text("".join(f"{i} plus {number} is {i + number}. " for i in range(60)))
    return prepare(corpus(folder), 300, folder=tmp_path_factory.mktemp("tokens") / "tokens", progress=False)


def gradients(model, tokens):
    model.zero_grad()
    loss = model(tokens, tokens)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_as_exact_as_with_scales_of_the_step_itself(device):
    torch.manual_seed(2)
    model, tokens = Transformer(CONFIG, device=device, dtype=torch.bfloat16), torch.randint(0, 64, (2, 24), device=device)
    before, exact = gradients(model, tokens)
    names = list(model.state_dict())
    convert(model, "delayed")
    for step in range(3):  # the first one looks at each tensor, the others do not
        loss, found = gradients(model, tokens)
        assert loss == pytest.approx(before, rel=0.01) and loss != before
        for name, grad in found.items():
            assert (grad - exact[name]).float().norm() < 0.15 * exact[name].float().norm(), (step, name)
        assert model.fp8_scales.rows[:, LARGEST].gt(0).all(), "each site was seen"
        model.fp8_scales.step()
    with torch.no_grad():
        assert model(tokens, tokens).item() == pytest.approx(loss, rel=1e-3)
    assert model.fp8_scales.rows[:, LARGEST].eq(0).all(), "an evaluation leaves nothing behind"
    model.fp8_scales.rows[:, SCALE] *= 1e4  # planted: scales that are far too large, everything saturates
    assert gradients(model, tokens)[0] != pytest.approx(before, rel=0.01)
    assert list(model.state_dict()) == names


def test_a_training_goes_on_with_the_scales_it_had(tmp_path, data):
    torch.set_num_threads(1)
    shape = {"vocab_size": 320, "embed_dim": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "ffn_dim": 48}
    options = {"model": shape, "seq_len": 32, "batch_size": 2, "fp8": "delayed", "warmup": 1, "sample_tokens": 1, "evaluate_batches": 1}

    def trained(steps, **more):
        trainer = Trainer(TrainConfig(steps=steps, schedule="constant", **options, **more), data)
        trainer.train()
        return trainer

    whole = trained(6)
    trained(3, folder=str(tmp_path))
    resumed = trained(6, folder=str(tmp_path))
    assert resumed.fp8_scales.steps == 6 and torch.equal(resumed.fp8_scales.rows, whole.fp8_scales.rows)
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters()))
    assert whole.rows[5]["loss"] < whole.rows[0]["loss"]
