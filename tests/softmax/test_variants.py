"""Every version of `softmax`: right on rows of any length, masked rows, large values, strides; and what each refuses."""

import pytest
import torch

from labkernels.cuda import sanitizing
from labkernels.cuda.variants import kernel
from labkernels.lab.check import check
from labkernels.softmax.variants import FOLDER, VARIANTS, v3_registers
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16]


def random(rows: int, cols: int, device: str = "cpu", dtype=torch.float32) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(cols)).to(device, dtype)


def assert_right(result: torch.Tensor, x: torch.Tensor) -> None:
    """float32: a few units in the last place of an exp whose argument was rounded. bfloat16: what rounding the right result costs."""
    want = torch.softmax(x.double(), dim=-1)
    relative = 2e-5 if x.dtype == torch.float32 else 2**-8
    assert result.shape == x.shape and result.dtype == x.dtype and result.is_contiguous()
    torch.testing.assert_close(result.double(), want, rtol=relative, atol=1e-12)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_passes_the_check(name):
    assert check("softmax", name, seeds=(0,), quiet=True).sanitizer == "clean"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_rows_of_any_length(name, dtype, device):
    for rows, cols in ((1, 1), (3, 33), (5, 65), (2, 127), (6, 256)):
        x = random(rows, cols, device, dtype)
        assert_right(VARIANTS[name].fn(x), x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", [1024, 1032, 8192, 9001, 32_768, 40_000])  # a warp; a block of 256; of 1024, unaligned; streamed
def test_v3_long_rows_by_warp_by_block_and_streamed(cols, dtype, device):
    x = random(3, cols, device, dtype)
    assert_right(v3_registers(x), x)


@pytest.mark.parametrize("cols", [1100, 40_000])  # the check's small shapes stay within a warp
def test_v3_has_no_race_by_block_and_streamed(cols):
    x = random(2, cols)
    with sanitizing():
        assert_right(v3_registers(x), x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name, cols", [("v1_three_pass", 100), ("v2_online", 100), ("v3_registers", 100), ("v3_registers", 33_000)])
def test_rows_that_begin_with_minus_infinity(name, cols, device):
    x = random(4, cols, device)
    x[0, :1] = x[1, : cols // 2] = x[2, : cols - 1] = -torch.inf
    result = VARIANTS[name].fn(x)
    assert_right(result, x)
    assert result[2, -1] == 1 and result[1, : cols // 2].eq(0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name, cols", [("v1_three_pass", 65), ("v2_online", 65), ("v3_registers", 65), ("v3_registers", 33_000)])
def test_what_has_no_softmax_is_nan_as_in_pytorch(name, cols, device):
    x = random(4, cols, device)
    x[0] = -torch.inf
    x[1, 7] = torch.nan
    x[2, 64] = torch.inf
    x[3, 5:] = -torch.inf
    result = VARIANTS[name].fn(x)
    assert result[:3].isnan().all()
    assert_right(result[3:], x[3:])


@pytest.mark.parametrize("name", VARIANTS)
def test_large_values_do_not_overflow(name):
    x = 50 * random(5, 257)
    assert_right(VARIANTS[name].fn(x), x)
    x = torch.tensor([[3e38, -3e38, 3e38]])
    assert VARIANTS[name].fn(x).tolist() == [[0.5, 0.0, 0.5]]


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_apart_and_unaligned(name):
    wide = random(5, 67)
    for x in (wide[:, 1:65], wide[:, :64], wide[1:4, 3:], wide[:, 2:3]):
        assert_right(VARIANTS[name].fn(x), x)


def test_columns_apart():
    x = random(6, 50).t()
    for name in ("v1_three_pass", "v2_online"):
        assert_right(VARIANTS[name].fn(x), x)
    assert VARIANTS["v3_registers"].accepts(x=x) == "takes rows whose elements are neighbours in memory"


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_nothing_in_nothing_out(name, shape):
    assert VARIANTS[name].fn(torch.empty(shape)).shape == shape


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a"])
@pytest.mark.parametrize(
    "file, name, arguments",
    [
        ("v1_three_pass", "softmax_three_pass", (torch.float32,)),
        ("v2_online", "softmax_online", (torch.bfloat16,)),
        ("v3_registers", "softmax_registers", (torch.float32, 32, 32, 1)),
        ("v3_registers", "softmax_registers", (torch.float32, 1024, 8, 4)),
        ("v3_registers", "softmax_registers", (torch.bfloat16, 1024, 4, 8)),
        ("v3_registers", "softmax_registers", (torch.bfloat16, 1024, 32, 1)),
        ("v3_registers", "softmax_streamed", (torch.bfloat16, 8)),
    ],
)
def test_compiles_for_gpus_without_spills(file, name, arguments, arch):
    resources = taken(kernel(FOLDER / f"{file}.cu", name, *arguments), arch)
    assert resources.spill_stores == resources.stack == 0, resources
