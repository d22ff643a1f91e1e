"""Every version of `scaled_matmul`: right at partial tiles in every configuration, with every kind of scale; what each refuses."""

import pytest
import torch

from labkernels.cuda import sanitizing
from labkernels.lab.check import check
from labkernels.scaled_matmul import variants
from labkernels.scaled_matmul.op import FLOAT8, OP, make_inputs
from labkernels.scaled_matmul.variants import HOPPER, PROMOTED, TALL, VARIANTS

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SANITIZED = [("promoted", "128"), ("promoted", "192_every_2"), ("promoted", "128_cluster"), ("tall", "128_cluster"), ("configured", "128x256_cluster")]
CONFIGURED = [("promoted", name) for name in PROMOTED] + [("tall", name) for name in TALL] + [("configured", name) for name in HOPPER]


def inputs(m, n, k, device="cpu", dtype=torch.bfloat16, **options):
    return make_inputs(torch.Generator().manual_seed(m + n + k), device, dtype, m=m, n=n, k=k, **options)


def assert_right(result, x) -> None:
    """As a whole at most twice as far from float64 as PyTorch's own, which rounds to 8 (or 11) bits as well."""
    want = OP.reference(**{name: value.double() if isinstance(value, torch.Tensor) else value for name, value in x.items()})
    assert result.shape == want.shape and result.dtype == x["out_dtype"] and result.is_contiguous()
    error, own = (result - want), (OP.native(**x) - want)
    assert error.norm() <= 2 * own.norm() + 2**-10 * want.norm(), (error.norm(), own.norm())
    if want.numel():
        assert (error.abs() <= 2**-7 * want.abs() + 2 * own.abs().max() + 1e-4).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_passes_the_check(name):
    assert check("scaled_matmul", name, seeds=(0,), quiet=True).sanitizer == "clean"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("launch, config", CONFIGURED)
def test_every_configuration_at_partial_tiles_and_every_number_of_stages(launch, config, device):
    for m, n, k in ((129, 264, 144), (60, 120, 272), (1, 8, 400)):
        x = inputs(m, n, k, device)
        assert_right(getattr(variants, launch)(config, **x), x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("scales", ["rows", "tensor", "mixed"])
def test_scales_bias_and_both_dtypes(scales, name, device):
    for dtype in (torch.bfloat16, torch.float16):
        x = inputs(70, 72, 160, device, dtype, scales=scales, bias=True, gap=16)
        assert_right(VARIANTS[name](**x), x)
        x |= {"scale_a": x["scale_a"].reshape(-1) if scales != "tensor" else x["scale_a"]}
        x |= {"scale_b": torch.rand(72, 2, device=device)[:, 0]}  # not dense
        assert_right(VARIANTS[name](**x), x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VARIANTS)
def test_nan_spoils_its_row_and_column_alone(name, device):
    x = inputs(40, 48, 144, device)
    nan = torch.full((), 0x7F, dtype=torch.uint8, device=device)
    for matrix, row, column in ((x["a"], 3, 100), (x["b"].t(), 5, 7)):
        matrix.view(torch.uint8)[row, column] = nan
    is_nan = VARIANTS[name](**x).isnan()
    assert is_nan[3].all() and is_nan[:, 5].all() and is_nan.sum() == 40 + 48 - 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VARIANTS)
def test_what_lies_between_the_rows_is_not_read(name, device):
    x = inputs(33, 40, 144, device, gap=16)
    a, b = (torch.full((rows, 160), float("nan"), device=device).to(FLOAT8) for rows in (33, 40))
    a[:, :144], b[:, :144] = x["a"], x["b"].t()
    torch.testing.assert_close(VARIANTS[name](**{**x, "a": a[:, :144], "b": b[:, :144].t()}), VARIANTS[name](**x), rtol=0, atol=0)


@pytest.mark.parametrize("launch, config", SANITIZED)
def test_clean_under_the_sanitizer(launch, config):
    for sizes in ((33, 40, 48), (130, 136, 272)):
        x = inputs(*sizes, bias=True)
        with sanitizing():
            assert_right(getattr(variants, launch)(config, **x), x)


def test_what_the_copy_engine_cannot_fetch_is_refused():
    accepts = VARIANTS["v2_hopper"].accepts
    assert accepts(**inputs(8, 8, 16)) is None
    assert accepts(**inputs(8, 8, 20)) == "takes rows of a that begin on multiples of 16 bytes"
    x = inputs(8, 8, 16)
    assert accepts(**{**x, "b": inputs(8, 8, 16, gap=3)["b"]}) == "takes columns of b that begin on multiples of 16 bytes"
    assert accepts(**inputs(8, 12, 16)) == "takes n that is a multiple of 8"
    assert accepts(**inputs(8, 8, 0)) == "takes k from 1"
    assert accepts(**{**x, "bias": torch.ones(9, dtype=torch.bfloat16)[1:]}) == "takes a bias that begins on a multiple of 4 bytes"


@pytest.mark.parametrize("launch, config", [("promoted", name) for name in PROMOTED] + [("tall", name) for name in TALL])
def test_promotion_compiles_for_hopper_without_spills_or_serialized_wgmma(launch, config):
    config = {"promoted": PROMOTED, "tall": TALL}[launch][config]
    kernel = getattr(variants, f"_{launch}")(config, torch.bfloat16)
    resources = kernel.resources("sm_90a")
    assert resources.spill_store_bytes == resources.stack_bytes == 0, resources
    assert "serialized" not in kernel.compiled("sm_90a").log
    assert config.shared_mem + resources.shared_bytes <= 227 * 1024


@pytest.mark.parametrize("m, n, low", [(512, 4096, True), (512, 28672, True), (512, 6144, False), (2048, 4096, False), (8192, 28672, False)])
def test_low_tiles_are_taken_where_tall_ones_would_leave_multiprocessors_idle(m, n, low, monkeypatch):
    monkeypatch.setattr(variants, "processors", lambda tensor: 132)
    assert variants._low(torch.empty(m, 1, device="meta"), torch.empty(1, n, device="meta")) == low
