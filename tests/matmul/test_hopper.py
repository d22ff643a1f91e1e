"""v7 of `matmul`: its configurations in the emulator, both layouts, clusters and fp8; which one is chosen; what it refuses."""

import pytest
import torch

from labkernels.cuda import sanitizing
from labkernels.matmul import hopper
from labkernels.matmul.hopper import Config, best_config, configured
from labkernels.matmul.reference import reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SMALL = Config(64, 64, 1, 3, 2)
CONFIGS = [SMALL, Config(128, 128, 2, 2, 2), Config(128, 96, 2, 2, 4), Config(128, 64, 1, 2, 2), Config(64, 128, 1, 2, 2, cluster=2)]


def random(*shape, dtype=torch.bfloat16, device="cpu", seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(device, dtype)


def assert_right(got, a, b, *rest):
    exact = reference(a.double(), b.double(), *(x.double() if isinstance(x, torch.Tensor) else x for x in rest))
    assert got.dtype == a.dtype and got.is_contiguous()
    torch.testing.assert_close(got.double(), exact, rtol=torch.finfo(a.dtype).eps, atol=2e-4 * a.shape[1] ** 0.5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_configurations(config, device):
    for m, n, k in ((1, 8, 8), (140, 136, 200), (257, 72, 64)):
        a, b = random(m, k, device=device), random(n, k, device=device, seed=1).t()
        assert_right(configured(config, a, b), a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", [SMALL, Config(128, 128, 2, 2, 4, cluster=2)], ids=str)
@pytest.mark.parametrize("a_layout", ["rows", "columns"])
@pytest.mark.parametrize("b_layout", ["rows", "columns"])
def test_layouts(config, a_layout, b_layout, device):
    a = random(136, 88, dtype=torch.float16, device=device) if a_layout == "rows" else random(88, 136, dtype=torch.float16, device=device).t()
    b = random(88, 144, dtype=torch.float16, device=device) if b_layout == "rows" else random(144, 88, dtype=torch.float16, device=device).t()
    assert_right(configured(config, a, b), a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
def test_epilogue(activation, device):
    a, b = random(70, 64, device=device), random(72, 64, device=device, seed=1).t()
    bias, residual = random(73, device=device)[1:], random(70, 75, device=device)[:, 1:73]  # neither in pairs
    assert_right(configured(SMALL, a, b, bias, activation, residual), a, b, bias, activation, residual)


@pytest.mark.parametrize("device", DEVICES)
def test_fp8(device):
    a, b = (random(rows, 144, dtype=torch.float32, device=device) for rows in (70, 72))
    scale_a, scale_b = (x.abs().amax(1) / 448 for x in (a, b))
    a, b = ((x / scale[:, None]).to(torch.float8_e4m3fn) for x, scale in ((a, scale_a), (b, scale_b)))
    got = configured(SMALL, a, b.t(), scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16)
    exact = (a.double() * scale_a[:, None].double()) @ (b.double() * scale_b[:, None].double()).t()
    assert (got.double() - exact).norm() < 0.005 * exact.norm()


def test_nothing_goes_wrong_unseen():
    a, b = random(140, 200), random(136, 200, seed=1).t()
    with sanitizing():
        for config in (SMALL, Config(128, 64, 2, 2, 2), Config(64, 64, 1, 2, 2, cluster=2)):
            configured(config, a, b, random(136), "silu", random(140, 136))


def test_the_choice_fills_the_gpu():
    at_once = 132
    large = best_config(4096, 4096, 64, False, at_once)
    assert (large.rows, large.columns) == (128, 256)
    small = best_config(512, 2048, 32, False, at_once)
    assert small.blocks(512, 2048, at_once) == (128, 1)
    assert best_config(512, 3072, 32, True, at_once).columns % 64 == 0
    assert all(config.shared_mem <= 227 * 1024 for config in hopper.COSTS)


def test_what_it_refuses():
    a, b = random(8, 16), random(16, 8)
    assert hopper.accepts(a, b) is None and hopper.accepts(a, random(8, 16).t()) is None
    assert "bfloat16" in hopper.accepts(a.float(), b.float())
    assert "multiples of 8" in hopper.accepts(a, random(16, 7))
    assert "a's do not" in hopper.accepts(random(8, 17)[:, 1:], b)
    assert "b's do not" in hopper.accepts(a, random(16, 12)[:, :8])


def test_empty():
    assert hopper.v7_hopper(random(0, 16), random(16, 8)).shape == (0, 8)
