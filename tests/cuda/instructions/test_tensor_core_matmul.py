"""cp.async, ldmatrix and mma.sync together: a small double-buffered matmul, and what happens when a step of it is left out."""

from pathlib import Path

import pytest
import torch

from labkernels.cuda import Kernel, sanitize
from labkernels.cuda.emulator import profile

FILE = Path(__file__).parent / "tensor_core_matmul.cu"
MATMUL = Kernel(FILE, "matmul")


def operands(m: int, n: int, k: int):
    generator = torch.Generator().manual_seed(m + n + k)
    a, b = (torch.randn(shape, generator=generator).bfloat16() for shape in ((m, k), (k, n)))
    return a, b, torch.full((m, n), float("nan"))


def launch(kernel, a, b, c):
    (m, k), n = a.shape, b.shape[1]
    kernel(((n + 63) // 64, (m + 63) // 64), 128, (a, b, c, m, n, k))
    return c


@pytest.mark.parametrize("m, n, k", [(64, 64, 32), (128, 64, 160), (1, 8, 8), (65, 72, 40), (100, 136, 264)])
def test_product_is_right(m, n, k, device):
    a, b, c = operands(m, n, k)
    got = launch(MATMUL, a.to(device), b.to(device), c.to(device)).cpu().double()
    size = a.double().abs() @ b.double().abs()
    assert ((got - a.double() @ b.double()).abs() <= (k if device == "cpu" else 4 * k) * 2.0**-24 * size).all()


def test_clean_under_the_sanitizer():
    a, b, c = operands(65, 72, 104)
    report = sanitize(MATMUL, (2, 2), 128, (a, b, c, 65, 72, 104))
    assert report.clean, report


@pytest.mark.parametrize(
    "right, wrong, kinds",
    [
        ("cp_async_wait<1>();", "cp_async_wait<2>();", {"uninitialized", "race"}),
        ("        __syncthreads();\n        const", "        const", {"race"}),
        ("        __syncthreads();        // everybody", "        // everybody", {"race"}),
        ("inside ? b + from_row * n + from_column : b, inside ? 16 : 0", "b + from_row * n + from_column", {"out_of_bounds"}),
        ("TILE_K + 8", "TILE_K + 4", {"misaligned"}),
    ],
)
def test_mistakes_are_found(right, wrong, kinds):
    text = FILE.read_text()
    assert text.count(right) == 1
    a, b, c = operands(64, 64, 104)
    report = sanitize(Kernel(text.replace(right, wrong), "matmul"), (1, 1), 128, (a, b, c, 64, 64, 104))
    assert {finding.kind for finding in report.findings} & kinds, report


def test_shared_memory_has_no_bank_conflicts():
    a, b, c = operands(64, 64, 64)
    padded = profile(MATMUL, 1, 128, (a, b, c, 64, 64, 64))
    assert padded.shared_load_requests == 2 * 4 * 2 * 4 and padded.shared_load_conflicts == 0  # tiles, warps, steps, ldmatrix
    text = FILE.read_text().replace("TILE_K + 8", "TILE_K")
    assert profile(Kernel(text, "matmul"), 1, 128, (a, b, c, 64, 64, 64)).shared_load_conflicts > 0


def test_compiles_without_spills(arch):
    resources = MATMUL.resources(arch)
    assert resources.spill_store_bytes == 0 and resources.stack_bytes == 0
