"""A SwiGLU network whose products are PyTorch's: the same numbers as the model's own, whatever is kept."""

import pytest
import torch

from labkernels.llm.config import ModelConfig
from labkernels.llm.model import Transformer
from labkernels.llm.training import packed_swiglu, products
from labkernels.llm.training.packed_swiglu import PackedFeedForward, convert

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused, keep", [(False, False), (False, True), (True, False), (True, True)])
def test_losses_and_gradients_are_those_of_pytorch(dtype, fused, keep, device, monkeypatch):
    taken = []

    def takes_fused(x, w1, w2):  # however few tokens there are
        taken.append(products.accepts_swiglu(x, w1, w2) is None)
        return taken[-1]

    monkeypatch.setattr(packed_swiglu, "takes_fused", takes_fused)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = ModelConfig(vocab_size=64, embed_dim=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=128)
    model, tokens = Transformer(config, device=device, dtype=dtype), torch.randint(0, 64, (2, 24), device=device)

    def found():
        model.zero_grad()
        loss = model(tokens, tokens)
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}

    loss, exact = found()
    convert(model, fused, keep)
    assert sum(type(layer) is PackedFeedForward for layer in model.modules()) == 2
    close = 1e-5 if dtype == torch.float32 else 0.02
    for mode in ("none", "selective", "full"):
        model.checkpointing = mode
        ours, gradients = found()
        assert ours == pytest.approx(loss, rel=close)
        assert all((gradients[name] - each).float().norm() <= close * each.float().norm() for name, each in exact.items())
    with torch.autocast(device, torch.bfloat16):
        assert model(tokens, tokens).item() == pytest.approx(loss, rel=0.02)
    assert any(taken) == fused and (dtype == torch.float32 or all(taken)), "in 16 bits the fused products were taken"


def test_the_operator_passes_opcheck():
    x, w1, w2 = (torch.randn(size).requires_grad_() for size in ((6, 8), (32, 8), (8, 16)))
    for keep in (False, True):
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.labkernels.swiglu_ffn, (x, w1, w2, True, keep), test_utils=checks)
