"""Matmul's v7 and v8 with gated weights: partial tiles, biases, infinities; the sizes of the tiles they choose, registers."""

import pytest
import torch

from labkernels.ffn.reference import activate
from labkernels.matmul import hopper, split
from labkernels.matmul.hopper import Config

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TILES = [Config(128, 128, 2, 2, 2), Config(64, 128, 1, 3, 2), pytest.param(Config(128, 192, 2, 3, 2), marks=pytest.mark.gpu)]
INF = float("inf")


def random(*size, dtype=torch.float32, device="cpu"):
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size))).to(device, dtype)


def want(a, w, bias):
    return activate(torch.nn.functional.linear(a.double(), w.double(), None if bias is None else bias.double()), "swiglu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", TILES)
def test_hopper(config, device):
    for m, n, k in ((130, 72, 40), (3, 136, 200)):
        a, w, bias = (random(*size, dtype=torch.bfloat16, device=device) for size in ((m, k), (2 * n, k), (2 * n,)))
        for added in (None, bias):
            right = want(a, w, added)
            got = hopper.configured(config, a, w.t(), added, "silu", gated=True)
            assert got.shape == right.shape and (got - right).norm() < 3e-3 * right.norm()


@pytest.mark.parametrize("device", DEVICES)
def test_split(device):
    for m, n, k in ((130, 72, 40), (3, 201, 137)):
        a, w, bias = random(m, k, device=device), k**-0.5 * random(2 * n, k, device=device), random(2 * n, device=device)
        for added in (None, bias):
            right = want(a, w, added)
            assert (split.gated(a, w.t(), added) - right).norm() < 1e-6 * right.norm()


@pytest.mark.parametrize("device", DEVICES)
def test_infinities_of_gates_and_of_ups_go_where_they_should(device):
    a, w = random(9, 40, device=device), random(80, 40, device=device)
    w[3, 5], w[50, 6], a[2, 7] = INF, INF, -INF
    right, got = want(a, w, None), split.gated(a, w.t())
    finite = right.isfinite()
    assert 8 < (~finite).sum() < 200 and torch.equal(got[~finite].nan_to_num(7), right[~finite].float().nan_to_num(7))
    torch.testing.assert_close(got[finite].double(), right[finite], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [Config(128, 256, 2, 4, 4), Config(128, 192, 2, 5, 2), Config(64, 128, 1, 8, 2)])
def test_hopper_compiles_without_spills(config):
    kernel = hopper._kernel(config, torch.bfloat16, torch.bfloat16, False, False, True, 4, True)
    resources = kernel.resources("sm_90a")
    assert resources.spill_store_bytes == resources.stack_bytes == 0 and "serialized" not in kernel.compiled("sm_90a").log


@pytest.mark.parametrize("config", ["128", "64"])
def test_split_compiles_without_spills(config):
    kernel = split._kernel(split.CONFIGS[config], True, 4, True)
    resources = kernel.resources("sm_90a")
    assert resources.spill_store_bytes == resources.stack_bytes == 0 and "serialized" not in kernel.compiled("sm_90a").log
