"""v4 of `quant_matmul`: every scheme at partial tiles, tiles cut along k, what the sanitizer and ptxas say."""

import pytest
import torch

from labkernels.cuda import sanitizing
from labkernels.cuda.variants import kernel
from labkernels.quant import quantize
from labkernels.quant.v4_variants import CONFIGS, FILE, VARIANTS, configured
from labkernels.quant.v5_variants import SCHEMES
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CASES = [  # configuration, (m, n, k), scheme, group size, dtype of x
    ("64x8", (5, 133, 400), "int4", 128, torch.bfloat16),
    ("64x8", (1, 3, 1), "nf4", 32, torch.bfloat16),
    ("128x16", (13, 133, 300), "nf4", 64, torch.float16),
    ("128x32", (70, 131, 77), "int8", None, torch.bfloat16),
    ("128x64", (70, 130, 300), "fp8", None, torch.float16),
    ("128x64", (33, 130, 260), "int4", 32, torch.float16),
]


def inputs(m, n, k, scheme, group_size, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(m + n + k)
    weight = quantize(torch.randn(n, k, generator=generator) * 0.1, scheme, group_size)
    return torch.randn(m, k, generator=generator).to(device, dtype), weight.to(device)


def assert_right(y, x, weight) -> None:
    """At most 1.5 times as far from float64 as the product with the weight rounded to x's dtype; and no element far off."""
    want = x.double() @ weight.dequantize(torch.float64).t()
    own = (x.double() @ weight.dequantize(x.dtype).double().t()).to(x.dtype).double()
    assert y.shape == want.shape and y.dtype == x.dtype and y.is_contiguous()
    assert (y.double() - want).norm() <= 1.5 * (own - want).norm() + 1e-6 * want.norm()
    assert (y.double() - want).abs().max() <= 4 * (own - want).abs().max() + 1e-6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config, sizes, scheme, group_size, dtype", CASES)
def test_schemes_at_partial_tiles_whole_and_cut(config, sizes, scheme, group_size, dtype, device):
    x, weight = inputs(*sizes, scheme, group_size, dtype, device)
    for blocks in (None, 1, 3):
        assert_right(configured(config, x, weight, blocks=blocks), x, weight)


@pytest.mark.parametrize("device", DEVICES)
def test_tiles_cut_along_k_give_the_same_bits_each_time_and_leave_the_counters_at_zero(device, counters_used):
    x, weight = inputs(5, 133, 400, "int4", 128, torch.bfloat16, device)
    first = configured("64x8", x, weight, blocks=7)
    for _ in range(3):
        torch.testing.assert_close(configured("64x8", x, weight, blocks=7), first, rtol=0, atol=0)
    assert counters_used and not any(counters.any() for counters in counters_used)


def test_a_launch_that_was_interrupted_spoils_none_after_it(counters_used):
    x, weight = inputs(5, 133, 400, "int4", 128, torch.bfloat16)
    first = configured("64x8", x, weight, blocks=7)
    for counters in counters_used:
        counters.fill_(1)  # as the emulator leaves them when it is stopped
    assert torch.equal(configured("64x8", x, weight, blocks=7), first)


@pytest.mark.parametrize("device", DEVICES)
def test_x_may_lie_anywhere_and_bias_is_added(device):
    x, weight = inputs(5, 133, 400, "int4", 128, torch.bfloat16, device)
    want = configured("64x8", x, weight)
    for other in (torch.nn.functional.pad(x, (3, 2))[:, 3:403], x.t().contiguous().t()):
        torch.testing.assert_close(configured("64x8", other, weight), want, rtol=0, atol=0)
    bias = torch.arange(133, device=device).to(x.dtype)
    torch.testing.assert_close(configured("64x8", x, weight, bias), want + bias, rtol=0, atol=0)


def test_what_is_beyond_k_is_not_read():
    x, weight = inputs(5, 133, 77, "int8", None, torch.bfloat16)
    around = torch.full((5, 96), float("nan"), dtype=x.dtype)
    around[:, :77] = x
    torch.testing.assert_close(configured("128x32", around[:, :77], weight), configured("128x32", x, weight), rtol=0, atol=0)


@pytest.mark.parametrize("config, sizes, scheme, group_size, dtype", [CASES[0], CASES[2], CASES[3]])
def test_clean_under_the_sanitizer(config, sizes, scheme, group_size, dtype):
    x, weight = inputs(*sizes, scheme, group_size, dtype)
    with sanitizing():
        assert_right(configured(config, x, weight, blocks=3), x, weight)


def test_a_wrong_order_of_k_would_be_seen():
    x, weight = inputs(5, 133, 400, "int4", 128, torch.bfloat16)
    swapped = x.view(5, -1, 2).flip(2).reshape(5, 400)
    with pytest.raises(AssertionError):
        assert_right(configured("64x8", swapped, weight), x, weight)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_compiles_without_spills(arch):
    for name, config in CONFIGS.items():
        for scheme, group_size in (("int4", 128), ("nf4", 64), ("int8", 0)):
            sizes = (group_size, config.warps, config.tiles, config.tokens, config.stages)
            resources = taken(kernel(FILE, "quant_matmul_tensor_cores", torch.bfloat16, f"Scheme::{SCHEMES[scheme]}", *sizes), arch)
            assert resources.spill_stores == resources.stack == 0, (name, resources)
            assert config.blocks * (config.shared_mem(scheme) + 1024) <= 228 * 1024


def test_what_it_refuses():
    accepts = VARIANTS["v4_tensor_cores"].accepts
    x, weight = inputs(5, 133, 400, "int4", 128, torch.bfloat16)
    assert accepts(x, weight) is None
    assert accepts(x.float(), weight) == "takes x in bfloat16 and float16"
