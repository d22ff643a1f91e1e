"""The public functions: right results by the fastest variant that accepts the inputs, down the ladder where it does not."""

import pytest
import torch

import labkernels as lk
from labkernels.attention import attention
from labkernels.matmul import matmul
from labkernels.softmax import softmax
from labkernels.sum import sum as lk_sum

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def launched(monkeypatch):
    """The names of the variants that ran, in order."""
    names = []
    original = type(lk.ops["softmax"]).pick

    def pick(op, **inputs):
        variant = original(op, **inputs)
        names.append(variant.name)
        return variant

    monkeypatch.setattr(type(lk.ops["softmax"]), "pick", pick)
    return names


def test_softmax(launched):
    torch.manual_seed(0)
    x = torch.randn(5, 33, device=DEVICE)
    torch.testing.assert_close(softmax(x), torch.softmax(x, -1))
    torch.testing.assert_close(softmax(x.t()), torch.softmax(x.t(), -1))
    top, *lower = reversed(lk.ops["softmax"].variants)
    assert launched[0] == top and launched[1] in lower


def test_sum():
    torch.manual_seed(0)
    x = torch.randn(1000, device=DEVICE)
    torch.testing.assert_close(lk_sum(x).reshape(()), x.sum())
    torch.testing.assert_close(lk_sum(x[::2]).reshape(()), x[::2].sum())


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal, launched):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 20, 64, device=DEVICE), *torch.randn(2, 2, 2, 20, 64, device=DEVICE)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(attention(q, k, v, causal=causal), want, rtol=1e-4, atol=1e-5)
    accepting = [name for name, variant in lk.ops["attention"].variants.items() if variant.accepts(q=q, k=k, v=v) is None]
    assert launched == accepting[-1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matmul(dtype, launched):
    torch.manual_seed(0)
    a, weight, bias = (torch.randn(*shape, device=DEVICE).to(dtype) for shape in ((20, 64), (48, 64), (48,)))
    want = torch.nn.functional.silu(torch.nn.functional.linear(a.double(), weight.double(), bias.double()))
    torch.testing.assert_close(matmul(a, weight.t(), bias, "silu").double(), want, rtol=1e-4 if dtype == torch.float32 else 2**-7, atol=1e-4)
    assert launched[0] == next(v.name for v in reversed(lk.ops["matmul"].variants.values()) if v.accepts(a=a, b=weight.t()) is None)


def test_functional_gathers_them():
    assert (lk.functional.softmax, lk.functional.sum, lk.functional.matmul, lk.functional.attention) == (softmax, lk_sum, matmul, attention)


def test_wrong_inputs_are_named_before_anything_is_launched():
    q = torch.zeros(1, 2, 3, 128)
    with pytest.raises(ValueError, match="attention: k has head_dim 96, q has 128; both must be equal"):
        lk.functional.attention(q, torch.zeros(1, 2, 3, 96), q)


def test_every_public_name_resolves():
    for name in lk.__all__:
        assert getattr(lk, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'atention'"):
        lk.atention
