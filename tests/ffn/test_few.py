"""v7_tf32 of ffn: float32 for up to 64 tokens. Every configuration, every number of tokens, as exact as PyTorch; infinities; no spills."""

import pytest
import torch

from labkernels.cuda import sanitizing
from labkernels.ffn import few, reference
from labkernels.ffn.few import Config
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def inputs(tokens, embed, ffn, activation, bias, device="cpu"):
    generator = torch.Generator().manual_seed(tokens)
    normal = lambda *shape: torch.randn(shape, generator=generator)
    rows = 2 * ffn if activation == "swiglu" else ffn
    matrices = normal(tokens, embed), normal(rows, embed) / embed**0.5, normal(embed, ffn) / ffn**0.5
    return tuple(each.to(device) for each in (*matrices, *((normal(rows), normal(embed)) if bias else ())))


def error(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "tokens, embed, ffn, activation, bias",
    [
        (1, 32, 96, "swiglu", True), (2, 160, 48, "gelu", True), (4, 144, 272, "swiglu", False), (11, 544, 160, "swiglu", False),
        (20, 80, 64, "gelu", False), (64, 272, 208, "gelu_tanh", True), (3, 16, 16, "gelu", True),
    ],
)  # fmt: skip
def test_it_errs_no_more_than_float32(tokens, embed, ffn, activation, bias, device):
    given = inputs(tokens, embed, ffn, activation, bias, device)
    want = reference.reference(*(each.double() for each in given), activation=activation)
    assert error(few.v7_tf32(*given, activation=activation), want) < 2.5e-7


@pytest.mark.parametrize("config", [Config(1, 2, 2, 2), Config(2, 2, 3, 1), Config(4, 2, 2, 1), Config(1, 8, 2, 1)], ids=str)
def test_every_configuration_and_the_same_bits_each_time(config):
    given = inputs(9, 208, 144, "swiglu", True)
    run = lambda: few.configured(config, config, *given, activation="swiglu")
    got = run()
    assert error(got, reference.reference(*(each.double() for each in given), activation="swiglu")) < 2.5e-7 and torch.equal(got, run())


def test_one_tf32_product_would_not_do():
    x, w1, w2 = inputs(9, 208, 144, "gelu", False)
    cut = lambda matrix: (matrix.view(torch.int32) & -(1 << 13)).view(torch.float32)
    want = reference.reference(*(each.double() for each in (x, w1, w2)))
    assert error(reference.reference(cut(x), cut(w1), cut(w2)), want) > 1e-4


def test_infinities_and_nan_stay_with_their_token():
    x, w1, w2 = inputs(5, 32, 48, "gelu", False)
    x[1, 3], x[2, 4] = torch.inf, torch.nan
    got, want = few.v7_tf32(x, w1, w2), reference.reference(x, w1, w2)
    assert torch.equal(got.isfinite(), want.isfinite())
    h = few._linear(None, x, w1, None, 48, 0, False, False)
    assert torch.equal(h[1], (x @ w1.t())[1])  # all of them infinite, each with its sign


def test_is_clean():
    with sanitizing():
        few.v7_tf32(*inputs(3, 48, 32, "swiglu", True), activation="swiglu")


@pytest.mark.parametrize("tokens", [1, 4, 16, 32, 64])
def test_compiles_without_spills_and_fits(tokens):
    for sixteens, number, gated in ((1376, 4, True), (256, 0, False)):
        config = few.best_config(tokens, sixteens, 132)
        assert config.resident * (config.shared_mem + 1024) <= 228 * 1024
        resources = taken(few._kernel(config, number, gated), "sm_90a")
        assert resources.spill_stores == 0, resources


def test_what_it_does_not_take():
    x, w1, w2 = inputs(3, 32, 48, "gelu", False)
    assert few._accepts(x, w1, w2) is None
    assert "at most 64 tokens" in few._accepts(x.new_zeros(65, 32), w1, w2)
    assert "takes float32" in few._accepts(x.half(), w1.half(), w2.half())
    assert "multiples of 16" in few._accepts(x[:, :24], w1[:, :24], w2[:24])
