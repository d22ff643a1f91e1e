"""A SwiGLU network whose products are PyTorch's: the same numbers as the model's own, whatever is kept."""

import pytest
import torch

from labkernels.llm.config import ModelConfig
from labkernels.llm.model import Transformer
from labkernels.llm.training.packed_swiglu import PackedFeedForward, convert

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_those_of_pytorch(dtype, device):
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=64, embed_dim=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=48)
    model, tokens = Transformer(config, device=device, dtype=dtype), torch.randint(0, 64, (2, 24), device=device)

    def found():
        model.zero_grad()
        loss = model(tokens, tokens)
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}

    loss, exact = found()
    convert(model)
    assert sum(type(layer) is PackedFeedForward for layer in model.modules()) == 2
    close = 1e-5 if dtype == torch.float32 else 0.02
    for mode in ("none", "selective", "full"):
        model.checkpointing = mode
        ours, gradients = found()
        assert ours == pytest.approx(loss, rel=close)
        assert all((gradients[name] - each).float().norm() <= close * each.float().norm() for name, each in exact.items())
    with torch.autocast(device, torch.bfloat16):
        assert model(tokens, tokens).item() == pytest.approx(loss, rel=0.02)
