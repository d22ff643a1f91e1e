"""What follows a product in v7: activations over every bfloat16, and the residual that comes through the ring, strip by strip."""

import pytest
import torch

from labkernels.cuda import Kernel, sanitizing
from labkernels.matmul import hopper
from labkernels.matmul.hopper import Config, configured
from labkernels.matmul.reference import reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SMALL = Config(64, 64, 1, 3, 2)
SOURCE = """
    #include "../../matmul/finish_tile.cuh"
    template <int ACTIVATION>
    __global__ void apply(const float* x, float* y, int n) {
        for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = activate_tile<ACTIVATION, __nv_bfloat16>(x[i]);
    }"""
EXACT = {  # in forms that lose nothing far left of zero, where 1 + erf and 1 + tanh cancel
    "gelu": lambda x: 0.5 * x * torch.special.erfc(-x / 2**0.5),
    "gelu_tanh": lambda x: x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)),
    "silu": lambda x: x * torch.sigmoid(x),
}


def every_bfloat16() -> torch.Tensor:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return x[x.isfinite() & (x.abs() < 1e18)]  # x^3 must be a float32


def applied(activation: str, x: torch.Tensor) -> torch.Tensor:
    y = torch.full_like(x, float("nan"))
    Kernel(SOURCE, f"apply<{hopper.activation_number(activation)}>")(1, 256, (x, y, len(x)))
    return y


def assert_exact(got: torch.Tensor, want: torch.Tensor) -> None:
    """Within 2^-16 of it, which is 2^-8 of a bfloat16's last place; below 1e-8 an absolute 1e-11 will do."""
    assert got.isfinite().all()
    error = (got.double() - want).abs()
    allowed = (2.0**-16 * want.abs()).where(want.abs() > 1e-8, torch.full_like(want, 1e-11))
    assert (error <= allowed).all(), (error / want.abs().clamp(1e-30)).max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", EXACT)
def test_every_bfloat16_gets_the_exact_value_rounded(activation, device):
    x = every_bfloat16().float().to(device)
    got, want = applied(activation, x), EXACT[activation](x.double())
    assert_exact(got, want)
    differ = (got.bfloat16() != want.bfloat16()) & (want.abs() > 1e-8)  # where the exact value lies within 2^-16 of the middle between two
    assert differ.float().mean() < 1e-3
    if activation == "gelu":
        assert not differ.any() or device != "cpu"
        with pytest.raises(AssertionError):
            assert_exact(applied("gelu_tanh", x), want)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_not_finite_goes_where_pytorch_sends_it(device):
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, 3e38, -3e38, 1e-42, -1e20], device=device)
    want = torch.nn.functional.gelu(x.double()).float()
    torch.testing.assert_close(applied("gelu", x), want, rtol=1e-5, atol=1e-36, equal_nan=True)


def random(*shape, dtype=torch.bfloat16, device="cpu", seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(device, dtype)


def assert_right(config, a, b, *rest):
    got = configured(config, a, b, *rest)
    exact = reference(a.double(), b.double(), *(x.double() if isinstance(x, torch.Tensor) else x for x in rest))
    torch.testing.assert_close(got.double(), exact, rtol=torch.finfo(a.dtype).eps, atol=2e-4 * a.shape[1] ** 0.5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "config",
    [
        Config(128, 160, 2, 2, 4),  # two stages of the residual, strips of 32 columns
        Config(128, 192, 2, 2, 2),  # two stages, of two strips and one
        Config(128, 64, 1, 2, 2),  # 128 rows of one warpgroup
        Config(64, 128, 1, 2, 2, cluster=2),
    ],
    ids=str,
)
def test_strips_of_the_residual(config, device):
    m, n = 140, config.columns + 24
    a, b = random(m, 72, dtype=torch.float16, device=device), random(n, 72, dtype=torch.float16, device=device, seed=1).t()
    bias, residual = random(n, dtype=torch.float16, device=device), random(m, n, dtype=torch.float16, device=device)
    assert_right(config, a, b, bias, "silu", residual)


@pytest.mark.parametrize("device", DEVICES)
def test_a_block_of_many_tiles_keeps_its_place_in_the_ring(device, monkeypatch):
    monkeypatch.setattr(hopper, "processors", lambda tensor: 2)
    a, b = random(200, 136, device=device), random(136, 136, device=device, seed=1).t()
    assert_right(SMALL, a, b, random(136, device=device), "gelu", random(200, 136, device=device))


@pytest.mark.parametrize("device", DEVICES)
def test_residuals_that_the_copy_engine_cannot_read_are_copied_first(device):
    a, b = random(70, 24, device=device), random(72, 24, device=device, seed=1).t()
    wide = random(70, 90, device=device)
    for residual in (wide[:, 2:74], wide[:, :72], random(72, device=device).expand(70, 72), random(70, 80, device=device)[:, 8:]):
        assert_right(SMALL, a, b, None, None, residual)
    assert_right(SMALL, a[:1], b, None, None, wide[:1, :72])


def test_nothing_goes_wrong_unseen(monkeypatch):
    monkeypatch.setattr(hopper, "processors", lambda tensor: 1)
    a, b = random(140, 72), random(136, 72, seed=1).t()
    with sanitizing():
        configured(Config(128, 96, 2, 2, 2), a, b, random(136), "gelu", random(140, 136))


@pytest.mark.parametrize("config", [config for config in hopper.COSTS if config.columns in (256, 224)], ids=str)
def test_no_sum_leaves_its_register_and_no_product_waits_for_the_one_before(config):
    kernel = hopper._kernel(config, torch.bfloat16, torch.bfloat16, False, False, True, hopper.activation_number("gelu"))
    resources = kernel.resources("sm_90a")
    assert resources.spill_store_bytes == resources.stack_bytes == 0, resources
    assert "serialized" not in kernel.compiled("sm_90a").log
