"""`LinearCrossEntropy`: PyTorch's linear layer and loss, in one layer; a shared weight; what is refused."""

import pytest
import torch
from torch import nn

import labkernels as lk
from labkernels.errors import ArgumentError


def test_the_layer_is_a_linear_layer_and_its_loss():
    torch.manual_seed(0)
    layer, x, target = lk.nn.LinearCrossEntropy(16, 40, label_smoothing=0.1), torch.randn(2, 5, 16), torch.randint(0, 40, (2, 5))
    loss = layer(x, target)
    want = nn.functional.cross_entropy(layer.logits(x).view(10, 40), target.view(-1), label_smoothing=0.1)
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(each, layer.weight)[0] for each in (loss, want)), rtol=1e-4, atol=1e-6)
    assert list(layer.state_dict()) == ["weight"] and "hidden_dim=16, vocab_size=40, ignore_index=-100, label_smoothing=0.1" in repr(layer)


def test_a_shared_weight_is_one_parameter():
    embedding = nn.Embedding(40, 16)
    layer = lk.nn.LinearCrossEntropy(16, 40, weight=embedding.weight)
    assert layer.weight is embedding.weight
    with pytest.raises(ArgumentError, match=r"LinearCrossEntropy: weight has shape \(40, 16\); it must be \(41, 16\)"):
        lk.nn.LinearCrossEntropy(16, 41, weight=embedding.weight)
    with pytest.raises(ArgumentError, match="vocab_size is 0"):
        lk.nn.LinearCrossEntropy(16, 0)
