"""v6 of `matmul`: right at every size, layout and alignment, in every configuration; no bank conflicts, no spills, nothing leaks in."""

import itertools

import pytest
import torch

from labkernels.cuda import Kernel, sanitizing
from labkernels.cuda.emulator import profile
from labkernels.cuda.variants import kernel
from labkernels.matmul import tensor_cores
from labkernels.matmul.reference import ACTIVATIONS, reference
from labkernels.matmul.tensor_cores import CONFIGS, FILE, V6, best_config, configured, copy_width

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LAYOUTS = ["rows", "columns"]
SMALL = "64x64x64"


def random(rows, columns, dtype=torch.bfloat16, device="cpu", stride=None, first=0):
    """(rows, columns) cut out of rows `stride` apart. What lies around it is NaN."""
    generator = torch.Generator().manual_seed(rows + 1000 * columns)
    wide = torch.full((rows + 1, stride or columns), float("nan"))
    wide[:rows, first : first + columns] = torch.randn(rows, columns, generator=generator)
    return wide.to(device, dtype)[:rows, first : first + columns]


def operands(m, n, k, layout="rows", dtype=torch.bfloat16, device="cpu"):
    b = random(k, n, dtype, device) if layout == "rows" else random(n, k, dtype, device).t()
    return random(m, k, dtype, device), b


def assert_right(result, a, b, bias=None, activation=None, residual=None) -> None:
    """Near float64; and no further from it than twice what PyTorch's own is, which rounds at each step."""
    inputs = [x if x is None else x.double() for x in (a, b, bias)] + [activation, None if residual is None else residual.double()]
    want = reference(*inputs)
    assert result.shape == want.shape and result.dtype == a.dtype and result.device == a.device and result.is_contiguous()
    if not result.numel():
        return
    rounding = torch.finfo(a.dtype).eps / 2
    torch.testing.assert_close(result.double(), want, rtol=1.01 * rounding, atol=1e-5 * max(1, a.shape[1]) ** 0.5)
    error, native = ((x.double() - want).abs().max() for x in (result, reference(a, b, bias, activation, residual)))
    assert error <= 2 * native + 1e-6, (error, native)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", CONFIGS)
def test_every_configuration_at_partial_tiles(config, layout, device):
    c = CONFIGS[config]
    for m, n, k in ((c.block_m + 1, c.block_n + 8, 2 * c.block_k + 8), (c.block_m - 15, 8, c.block_k)):
        a, b = operands(m, n, k, layout, device=device)
        assert_right(configured(config, a, b), a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_odd_sizes(dtype, layout, device):
    for m, n, k in ((1, 1, 1), (3, 17, 33), (33, 3, 129), (17, 129, 1), (129, 65, 70), (5, 66, 36), (1, 40, 300)):
        a, b = operands(m, n, k, layout, dtype, device)
        assert_right(V6(a, b), a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogues_in_vectors_and_by_elements(activation, device):
    for n in (72, 67):
        a, b = operands(70, n, 40, "columns", device=device)
        bias, residual = random(1, n, device=device)[0], random(70, n, device=device, stride=80, first=8)
        for added in ({}, {"bias": bias}, {"residual": residual}, {"bias": bias, "residual": residual}):
            assert_right(configured(SMALL, a, b, activation=activation, **added), a, b, activation=activation, **added)
    residual = random(70, 72, device=device, stride=75, first=1)  # beside rows of 72, that are written 8 at a time
    a, b = operands(70, 72, 40, "columns", device=device)
    assert_right(configured(SMALL, a, b, None, activation, residual), a, b, None, activation, residual)


@pytest.mark.parametrize("device", DEVICES)
def test_slices_of_wider_matrices_and_nothing_from_around_them(device):
    for stride, first, width in ((88, 8, 8), (84, 4, 4), (82, 2, 2), (81, 1, 1)):
        a = random(50, 40, device=device, stride=stride, first=first)
        rows, columns = random(40, 40, device=device, stride=stride, first=first), random(40, 40, device=device, stride=stride, first=first).t()
        assert copy_width(a, rows) == copy_width(a, columns.t()) == width
        for b in (rows, columns):
            assert_right(configured(SMALL, a, b), a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_empty_sizes(device):
    for m, n in ((0, 5), (5, 0)):
        a, b = operands(m, n, 3, device=device)
        assert V6(a, b).shape == (m, n)
    for layout in LAYOUTS:
        a, b = operands(9, 16, 0, layout, device=device)
        bias, residual = random(1, 16, device=device)[0], random(9, 16, device=device)
        assert torch.equal(V6(a, b), torch.zeros_like(residual))
        assert_right(V6(a, b, bias, "silu", residual), a, b, bias, "silu", residual)


@pytest.mark.parametrize("device", DEVICES)
def test_one_column_or_row_of_any_stride(device):
    a, wide = random(20, 24, device=device), random(24, 24, device=device)
    for b in (wide[:, :1], wide.t()[:, :1], wide[:, 3].clone()[:, None]):
        assert_right(V6(a, b), a, b)
    a = wide[:, :1]
    for b in (wide[:1], wide.t()[:1]):
        assert_right(V6(a, b), a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_finite_stays_in_its_row_and_column(layout, device):
    a, b = operands(70, 72, 72, layout, device=device)
    a[3, 5], a[69, 71], b[71, 8], b[0, 71] = float("nan"), float("inf"), float("inf"), float("nan")
    want = a.double() @ b.double()
    result = configured(SMALL, a, b)
    assert torch.equal(result.isnan(), want.isnan()) and torch.equal(result.isinf(), want.isinf())
    known = want.isfinite()
    assert 60 * 60 < known.sum() < 70 * 72
    torch.testing.assert_close(result.double()[known], want[known], rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("config, layout", [(SMALL, "rows"), (SMALL, "columns"), ("128x128x32", "rows"), ("16x64x128", "columns")])
def test_clean_under_the_sanitizer(config, layout):
    c = CONFIGS[config]
    a, b = operands(c.block_m + 1, c.block_n + 8, 4 * c.block_k + 8, layout)
    bias, residual = random(1, b.shape[1])[0], random(a.shape[0], b.shape[1])
    with sanitizing():
        assert_right(configured(config, a, b, bias, "gelu", residual), a, b, bias, "gelu", residual)
    a, b = operands(5, 7, 70, layout)
    with sanitizing():
        assert_right(configured(config, a, b), a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", ["64x64x64", "128x128x32", "128x256x64", "16x64x128"])
def test_no_bank_conflicts_and_as_few_loads_as_can_be(config, layout, monkeypatch):
    c, launched = CONFIGS[config], []
    monkeypatch.setattr(Kernel, "__call__", lambda kernel, *launch: launched.append((kernel, *launch)))
    configured(config, *operands(c.block_m, c.block_n, 2 * c.block_k, layout))
    found = profile(*launched[0])
    assert found.shared_load_conflicts == found.shared_store_conflicts == 0
    lines = found.by_line
    of_loads = lines[lines["shared_load_requests"] > 0]
    fragments = (c.warp_m + c.warp_n) // 16 * c.threads // 32  # of one step of 16, in ldmatrix of four
    steps = 2 * c.block_k // 16 + 1
    through_shared = c.block_m * c.block_n // 128  # sums, four at a time
    assert of_loads["shared_load_requests"].sum() == fragments * steps + through_shared
    assert found.global_store_sectors == c.block_m * c.block_n * 2 // 32


@pytest.mark.parametrize("config, arch", [*zip(CONFIGS, itertools.cycle(["sm_80", "sm_90a"]))])  # data/resources.csv has on both what is launched
def test_compiles_for_gpus_without_spills(config, arch):
    c = CONFIGS[config]
    sizes = (c.block_m, c.block_n, c.block_k, c.warp_m, c.warp_n, c.stages, c.blocks)
    by_rows = str(arch == "sm_80").lower()  # one layout on each
    resources = kernel(FILE, "matmul_tensor_cores", torch.bfloat16, *sizes, by_rows, 8, 2).resources(arch)
    assert resources.spill_store_bytes == resources.stack_bytes == 0, resources
    if arch == "sm_90a":
        assert resources.occupancy(c.threads, c.shared_mem).blocks_per_sm >= c.blocks


def test_configuration_fits_the_problem(monkeypatch):
    assert best_config(4096, 4096, 4096).startswith(("128x256", "256x128", "128x128"))
    assert best_config(1, 4096, 4096) == best_config(16, 4096, 4096) == "16x64x128"
    assert CONFIGS[best_config(512, 2048, 2048)].tiles(512, 2048) >= 100  # a tile for nearly every multiprocessor
    monkeypatch.setattr(tensor_cores, "_multiprocessor", lambda device: (108, 164 * 1024))  # an A100
    assert CONFIGS[best_config(4096, 4096, 4096)].shared_mem <= 163 * 1024


def test_refuses_float32():
    a, b = operands(4, 4, 4, dtype=torch.float32)
    assert V6.accepts(a=a, b=b) == "takes bfloat16 and float16, not float32"
    assert V6.accepts(a=a.half(), b=b.half()) is None


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", CONFIGS)
def test_large_matrices_on_the_gpu(config, layout):
    for m, n, k in ((1000, 1111, 2000), (2048, 2048, 1024)):
        a, b = operands(m, n, k, layout, device="cuda")
        bias, residual = random(1, n, device="cuda")[0], random(m, n, device="cuda")
        assert_right(configured(config, a, b), a, b)
        assert_right(configured(config, a, b, bias, "gelu", residual), a, b, bias, "gelu", residual)
