"""Every version of `sum`: right at any length, and what each refuses."""

import pytest
import torch

from labkernels.cuda.variants import kernel
from labkernels.lab.check import check
from labkernels.sum.variants import BLOCKS, FOLDER, VARIANTS, v3_warp

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def random(n: int, device: str = "cpu") -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(n)).to(device)


def run(name: str, x: torch.Tensor) -> torch.Tensor:
    if (reason := VARIANTS[name].accepts(x=x)) is not None:
        pytest.skip(reason)
    return VARIANTS[name].fn(x)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_passes_the_check(name):
    report = check("sum", name, seeds=(0,), quiet=True)
    assert report.sanitizer == "clean" or "Numba" in VARIANTS[name].idea


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [0, 1, 3, 33, 65, 127, 4097, 70_000])
@pytest.mark.parametrize("name", VARIANTS)
def test_sum_is_right_at_any_length(name, n, device):
    x = random(n, device)
    result = run(name, x)
    assert result.shape == () and result.dtype == torch.float32 and result.device == x.device
    assert abs(result.item() - x.double().sum().item()) < 1e-6 * (8 + n / 8)


@pytest.mark.parametrize("device", DEVICES)
def test_more_elements_than_one_round_of_all_blocks_holds(device):
    n = BLOCKS * 256 * 4 * 4 + 12_345  # every thread's loop runs twice
    x = random(n, device)
    assert v3_warp(x).item() == pytest.approx(x.double().sum().item(), abs=0.05)


@pytest.mark.parametrize("name", ["v2_tree", "v3_warp"])
def test_sum_without_atomics_gives_the_same_bits_each_time(name):
    x = random(70_001)
    assert len({VARIANTS[name].fn(x).item() for _ in range(5)}) == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["v1_grid_stride", "v3_warp"])
def test_any_stride_and_any_start(name, device):
    x = random(5000, device)
    for part in (x[1:], x[::2], x[3::7]):
        assert run(name, part).item() == pytest.approx(part.double().sum().item(), abs=1e-3)


def test_versions_that_want_contiguous_memory_say_so():
    strided = random(10)[::2]
    assert {name: variant.accepts(x=strided) for name, variant in VARIANTS.items()} == {
        "v1_naive": "takes a contiguous x",
        "v1_grid_stride": "Numba runs on the GPU of this machine, not on CPU tensors" if torch.cuda.is_available() else None,
        "v2_tree": "takes a contiguous x",
        "v3_warp": None,
    }


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a"])
@pytest.mark.parametrize(
    "file, name, arguments",
    [("v1_naive", "sum_atomic", ()), ("v2_tree", "sum_tree", ()), ("v3_warp", "sum_warp", (1,)), ("v3_warp", "sum_warp", (4,))],
)
def test_compiles_for_gpus_without_spills(file, name, arguments, arch):
    resources = kernel(FOLDER / f"{file}.cu", name, *arguments).resources(arch)
    assert resources.spill_store_bytes == resources.stack_bytes == 0, resources
