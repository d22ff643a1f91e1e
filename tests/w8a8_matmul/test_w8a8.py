"""`w8a8_matmul`: what it computes, every version at partial tiles, the rows' quantisation bit by bit, how wrong inputs are named."""

import pytest
import torch

import labkernels as lk
from labkernels.cuda import sanitizing
from labkernels.cuda.variants import kernel
from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed
from labkernels.matmul.hopper import Config
from labkernels.w8a8_matmul import variants, w8a8_matmul
from labkernels.w8a8_matmul.op import OP, make_inputs
from labkernels.w8a8_matmul.reference import quantise
from labkernels.w8a8_matmul.variants import COSTS, VARIANTS

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SMALL = Config(64, 128, 1, 8, 2)


def inputs(m, n, k, device="cpu", dtype=torch.bfloat16, **options):
    return make_inputs(torch.Generator().manual_seed(m + n + k), device, dtype, m=m, n=n, k=k, **options)


def wanted(x: dict) -> torch.Tensor:
    """The result in float64."""
    return OP.reference(**{name: value.double() if isinstance(value, torch.Tensor) else value for name, value in x.items()})


def assert_right(result, x) -> None:
    want = wanted(x)
    assert result.shape == want.shape and result.dtype == x["x"].dtype and result.is_contiguous()
    torch.testing.assert_close(result.double(), want, rtol=torch.finfo(result.dtype).eps, atol=1e-5)


def test_the_reference_is_close_to_the_matrices_that_were_quantised():
    x = inputs(40, 48, 512, bias=True)
    exact = x["x"].double() @ (x["weight"].double() * x["scale"].double()[:, None]).t() + x["bias"].double()
    error = (wanted(x) - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.03, error


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_passes_the_check(name):
    assert check("w8a8_matmul", name, seeds=(0,), quiet=True).sanitizer == "clean"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("k", [1, 33, 96, 2048, 9000, 20000])
def test_rows_are_quantised_bit_by_bit(k, device):
    x = (torch.randn(5, k, generator=torch.Generator().manual_seed(k)) * 3).to(device, torch.bfloat16)
    x[1] = 0
    x[2, k // 2] = float("-inf")
    x[3, k - 1] = float("nan")
    (q, scales), (want_q, want_scales) = variants.quantise(x), quantise(x)
    assert q.stride(0) % 16 == 0
    torch.testing.assert_close(scales, want_scales, rtol=0, atol=0, equal_nan=True)
    for row in (0, 1, 4):
        torch.testing.assert_close(q[row], want_q[row], rtol=0, atol=0)
    assert scales[2:4].isnan().all() and q[4].abs().max() == 127


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", [SMALL, Config(128, 128, 2, 6, 4), Config(128, 256, 2, 4, 4), Config(128, 192, 2, 5, 2)], ids=str)
def test_configurations_of_hopper_at_partial_tiles(config, device):
    for m, n, k in ((129, 264, 144), (1, 8, 400)):
        x = inputs(m, n, k, device, bias=True)
        assert_right(variants.configured(config, **x), x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VARIANTS)
def test_float16_bias_and_gaps(name, device):
    x = inputs(70, 72, 160, device, torch.float16, bias=True, gap=16)
    assert_right(VARIANTS[name](**x), x)
    assert_right(VARIANTS[name](**{**x, "scale": x["scale"][:, None]}), x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_row_with_nan_or_infinity_becomes_nan_alone(name, device):
    x = inputs(40, 48, 144, device)
    x["x"][3, 100], x["x"][20, 7] = float("nan"), float("inf")
    is_nan = VARIANTS[name](**x).isnan()
    assert is_nan[3].all() and is_nan[20].all() and is_nan.sum() == 2 * 48


def test_sums_are_exact_where_float32_would_round():
    x = {"x": torch.full((1, 4096), 2.0, dtype=torch.bfloat16), "weight": torch.full((8, 4096), 127, dtype=torch.int8)}
    x |= {"scale": torch.full((8,), 2.0**-20), "bias": None}
    x["weight"][:, 0] = 126
    for name in VARIANTS:
        assert_right(VARIANTS[name](**x), x)


@pytest.mark.parametrize("config", [SMALL, Config(128, 128, 2, 6, 4)], ids=str)
def test_clean_under_the_sanitizer(config):
    x = inputs(130, 136, 272, bias=True)
    with sanitizing():
        assert_right(variants.configured(config, **x), x)
        assert_right(VARIANTS["v2_tensor_cores"](**x), x)


def test_a_forgotten_scale_is_told():
    def unscaled(x, weight, scale, bias=None):
        return VARIANTS["v1_naive"](x, weight, torch.ones_like(scale), bias)

    with pytest.raises(CheckFailed, match="Your result is without the scales of the weight's rows") as failed:
        check("w8a8_matmul", unscaled, seeds=(0,), quiet=True)
    assert failed.value.reason == "mismatch"


@pytest.mark.parametrize("device", DEVICES)
def test_the_public_function(device):
    x = inputs(6, 16, 64, device, bias=True)
    result = w8a8_matmul(**x)
    assert_right(result, x)
    torch.testing.assert_close(lk.functional.w8a8_matmul(x["x"].reshape(2, 3, 64), *list(x.values())[1:]), result.reshape(2, 3, 16), rtol=0, atol=0)
    for m, n, k in ((0, 8, 16), (4, 0, 16), (3, 5, 0)):
        assert_right(w8a8_matmul(**inputs(m, n, k, device, bias=True)), inputs(m, n, k, device, bias=True))


def test_opcheck_and_torch_compile():
    x = inputs(5, 16, 64, bias=True)
    w8a8_matmul(**x)  # defines the operator
    utilities = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.labkernels.w8a8_matmul.default, tuple(x.values()), test_utils=utilities)
    compiled = torch.compile(lambda *given: lk.functional.w8a8_matmul(*given) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*x.values()), w8a8_matmul(**x) * 2)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"x": lambda x: x.float()}, "x is float32; it must be bfloat16 or float16"),
        ({"x": lambda x: x[0]}, r"x has shape \(32,\); it must have two axes, \(m, k\)"),
        ({"x": lambda x: x.t().contiguous().t()}, "the rows of x must be dense"),
        ({"weight": lambda x: x.bfloat16()}, "weight is bfloat16; it must be int8"),
        ({"weight": lambda x: x[:, 1:]}, "x has 32 columns, weight has 31"),
        ({"scale": lambda x: x[1:]}, r"scale has shape \(7,\); it must have one number a row of weight, \(8,\) or \(8, 1\)"),
        ({"scale": lambda x: x.double()}, "scale is float64; it must be float32"),
        ({"bias": lambda x: x[1:]}, r"bias has shape \(7,\); it must be \(8,\)"),
        ({"bias": lambda x: x.float()}, "bias is float32, x is bfloat16; both must be equal"),
        ({"scale": lambda x: x.to("meta")}, "scale is on meta, x is on cpu"),
    ],
)
def test_wrong_inputs_are_named(change, words):
    x = inputs(6, 8, 32, bias=True)
    with pytest.raises(ArgumentError, match=f"w8a8_matmul: .*{words}"):
        w8a8_matmul(**{**x, **{name: wrong(x[name]) for name, wrong in change.items()}})


def test_what_each_refuses():
    hopper, cores = VARIANTS["v3_hopper"].accepts, VARIANTS["v2_tensor_cores"].accepts
    assert hopper(**inputs(8, 8, 16)) is None and cores(**inputs(8, 8, 16)) is None
    assert hopper(**inputs(8, 12, 16)) == "takes n that is a multiple of 8" and cores(**inputs(8, 12, 16)) is None
    assert "multiples of 16" in hopper(**inputs(8, 8, 20)) and "multiples of 16" in cores(**inputs(8, 8, 20))
    assert hopper(**inputs(8, 8, 0)) == "takes k from 1"


def test_compiles_without_spills_or_serialized_wgmma():
    for config in COSTS:
        compiled = variants._hopper(config, torch.bfloat16)
        resources = compiled.resources("sm_90a")
        assert resources.spill_store_bytes == resources.stack_bytes == 0, resources
        assert "C75" not in compiled.compiled("sm_90a").log
        assert config.shared_mem + resources.shared_bytes <= 227 * 1024
    for arch in ("sm_80", "sm_90a"):
        cores = kernel(variants.FOLDER / "v2_tensor_cores.cu", "w8a8_tensor_cores", torch.bfloat16, variants.STAGES).resources(arch)
        assert cores.spill_store_bytes == cores.stack_bytes == 0, cores


def test_the_product_without_quantisation_is_a_peer_at_its_distance():
    x = inputs(64, 96, 128)
    got, want = OP.peers["cublas_16_bit"].fn(**x).float(), OP.native(**x).float()
    assert 0.001 < (got - want).norm() / want.norm() < OP.peers["cublas_16_bit"].distance
