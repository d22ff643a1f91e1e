"""v8 of `matmul`: as exact as float32 arithmetic whatever the sizes, strides and magnitudes; infinities and NaN go where they should."""

import pytest
import torch

from labkernels.cuda import sanitizing
from labkernels.cuda.variants import kernel
from labkernels.lab.check import check
from labkernels.matmul import split as v8
from labkernels.matmul.reference import ACTIVATIONS, reference
from labkernels.matmul.split import CONFIGS, SPLIT_FILE, V8, best_config, configured, split
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LAYOUTS = ["rows", "columns"]
INF, NAN = float("inf"), float("nan")


def random(rows, columns, device="cpu", layout="rows", stride=None, first=0, seed=0):
    """Normally distributed, cut out of rows (columns) `stride` apart. What lies around them is NaN."""
    generator = torch.Generator().manual_seed(rows + 1000 * columns + seed)
    if layout == "columns":
        return random(columns, rows, device, stride=stride, first=first, seed=seed).t()
    wide = torch.full((rows + 1, stride or columns), NAN)
    wide[:rows, first : first + columns] = torch.randn(rows, columns, generator=generator)
    return wide.to(device)[:rows, first : first + columns]


def doubled(inputs):
    return [x.double() if isinstance(x, torch.Tensor) else x for x in inputs]


def assert_right(result, *inputs) -> None:
    """As a whole at most twice as far from float64 as PyTorch's float32, and no element far from it."""
    want, native = reference(*doubled(inputs)), reference(*inputs)
    assert result.shape == want.shape and result.dtype == torch.float32 and result.is_contiguous()
    assert result.device.type == inputs[0].device.type
    error, own = (result - want).abs(), (native - want).abs()
    assert error.norm() <= 2 * own.norm() + 2**-22 * want.norm(), (error.norm(), own.norm())
    if error.numel():
        assert error.max() <= 4 * own.max() + 2**-20 * want.abs().max(), (error.max(), own.max())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", CONFIGS)
def test_every_configuration_at_partial_tiles_and_every_number_of_stages(config, layout, device):
    columns = CONFIGS[config].columns
    for m, n, k in ((129, columns + 4, 64), (257, 2 * columns + 4, 72), (100, columns - 4, 136), (12, 300, 264), (1, 8, 330)):
        a, b = random(m, k, device), random(k, n, device, layout)
        assert_right(configured(config, a, b), a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_odd_sizes(layout, device):
    sizes = (1, 1, 1), (3, 17, 33), (33, 3, 129), (17, 129, 1), (129, 65, 70), (5, 66, 36), (1, 40, 300), (9, 7, 0), (0, 4, 4), (4, 0, 4)
    for m, n, k in sizes:
        a, b = random(m, k, device), random(k, n, device, layout)
        assert_right(V8(a, b), a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_every_length_that_is_split_in_its_own_way(layout, device):
    for k in (200, 300, 1000, 1500, 4000, 8000, 16000, 17000):
        a, b = random(3, k, device, layout), random(k, 5, device, layout)
        assert_right(V8(a, b), a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogues_in_slabs_and_by_elements(activation, device):
    for n in (72, 66, 67):
        a, b = random(70, 40, device), random(40, n, device, "columns")
        bias, residual = random(1, n, device)[0], random(70, n, device, stride=80, first=8)
        for added in ({}, {"bias": bias}, {"residual": residual}, {"bias": bias, "residual": residual}):
            assert_right(V8(a, b, activation=activation, **added), a, b, added.get("bias"), activation, added.get("residual"))
    residual = random(70, 72, device, stride=75, first=1)
    a, b = random(70, 40, device), random(40, 72, device, "columns")
    assert_right(V8(a, b, None, activation, residual), a, b, None, activation, residual)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_slices_of_wider_matrices_and_nothing_from_around_them(layout, device):
    for stride, first in ((56, 8), (56, 4), (54, 2), (53, 1)):
        a = random(50, 45, device, stride=stride, first=first)
        b = random(45, 40, device, layout, stride=stride, first=first)
        assert_right(V8(a, b), a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_every_magnitude(device):
    for size_a, size_b in ((1e-38, 1), (1e-42, 1e37), (3e37, 1e-2), (3e37, 1e-38), (1e-20, 1e-17), (1e15, 1e20), (2**-126, 2**-10)):
        a, b = size_a * random(33, 100, device), size_b * random(100, 40, device)
        assert_right(V8(a, b), a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_every_row_and_column_has_a_scale_of_its_own(device):
    a = random(33, 70, device) * 10.0 ** torch.linspace(-18, 18, 33, device=device)[:, None]
    b = random(70, 40, device) * 10.0 ** torch.linspace(-18, 18, 40, device=device)
    a[5], b[:, 6] = 0, 0
    result, want = V8(a, b), a.double() @ b.double()
    assert (result[5] == 0).all() and (result[:, 6] == 0).all()
    norms = a.double().norm(dim=1)[:, None] * b.double().norm(dim=0)
    assert ((result - want).abs() <= 4e-7 * norms).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_far_below_the_rows_largest_lose_little(layout, device):
    x = random(9, 500, device, layout) * 2.0 ** -torch.randint(0, 60, (9, 500), generator=torch.Generator().manual_seed(1)).to(device)
    halves, scales = split(x)
    got = scales[:, None].double() * (halves[:9].double() + halves[9:].double())[:, :500]
    largest = x.abs().amax(1, keepdim=True).double()
    assert ((scales * 2**14 <= largest[:, 0]) & (largest[:, 0] < scales * 2**15)).all()
    assert ((got - x).abs() <= torch.maximum(2**-22 * x.abs().double(), 2**-39 * largest)).all()
    assert (halves[:, 500:] == 0).all() and ((halves[:9, :500] != 0) == (x != 0)).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", CONFIGS)
def test_infinities_and_nan_go_where_float64_sends_them(config, layout, device):
    a, b = random(140, 150, device).clone(), random(150, 240, device, layout).clone()
    a[3, 5], a[7, 8], a[7, 9], a[20, 3], a[130, 0] = INF, -INF, INF, NAN, INF
    b[11, 30], b[0, 31], b[5, 33], b[149, 200] = -INF, NAN, INF, INF
    b[8, :5], b[5, 7], b[0, 9], b[5, 40], a[9, 11] = 0, 0, 1e-30, 0.5, 0
    result, want = configured(config, a, b), (a.double() @ b.double())
    finite = want.isfinite()
    assert 900 < (~finite).sum() < 3000
    torch.testing.assert_close(result[~finite].double(), want[~finite], equal_nan=True)
    torch.testing.assert_close(result[finite].double(), want[finite], rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_products_that_float32_cannot_hold_are_infinite(device):
    a, b = 1e30 * torch.ones(2, 8, device=device), 1e30 * torch.ones(8, 4, device=device)
    assert (V8(a, b) == INF).all() and (V8(a, -b) == -INF).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", ["128", "128_cluster_every_2", "64"])
def test_clean_under_the_sanitizer(config, layout):
    for m, n, k in ((33, 40, 24), (130, 132, 200), (20, 37, 72)):
        a, b, bias, residual = random(m, k).clone(), random(k, n, layout=layout), random(1, n)[0], random(m, n)
        with sanitizing():
            assert_right(configured(config, a, b, bias, "gelu", residual), a, b, bias, "gelu", residual)
            a[1, 2] = INF
            configured(config, a, b)


def test_passes_the_check():
    assert check("matmul", V8, dtypes=["float32"], seeds=(0,), quiet=True).sanitizer == "clean"


def test_takes_float32_alone():
    a = torch.ones(4, 4)
    assert V8.accepts(a, a) is None
    assert V8.accepts(a.bfloat16(), a.bfloat16()) == "takes float32, not bfloat16"


def test_wide_tiles_where_there_are_enough_of_them():
    assert best_config(4096, 4096, 132) == best_config(128, 128 * 132, 132) == "128"
    assert best_config(512, 512, 132) == best_config(1, 4096, 132) == "64"


@pytest.mark.parametrize("config, aligned", [*((config, True) for config in CONFIGS), ("128", False), ("64", False)])  # those two are in use
def test_compiles_for_hopper_without_spills_or_serialized_wgmma(config, aligned):
    compiled = v8._kernel(CONFIGS[config], aligned, 2)
    resources = compiled.resources("sm_90a")
    assert resources.spill_store_bytes == resources.stack_bytes == 0, resources
    assert "serialized" not in compiled.compiled("sm_90a").log
    assert CONFIGS[config].shared_mem + resources.shared_bytes <= 227 * 1024


@pytest.mark.parametrize("width", [4, 1])
def test_splitting_compiles_without_spills(width):
    lengths = (32, 4), (256, 8), (256, 0)  # the longest of each kind: those between hold fewer registers
    for name in (*(("split_rows", width, *length) for length in lengths), ("split_columns", width)):
        resources = taken(kernel(SPLIT_FILE, *name), "sm_90a")
        assert resources.spill_stores == resources.stack == 0, resources
