"""A warp-specialised matmul of TMA, mbarriers and wgmma: right, clean under the sanitizer, and each mistake in it found and named."""

import re
from pathlib import Path

import pytest
import torch

from labkernels.cuda import Kernel, sanitize
from labkernels.cuda.tensor_map import tensor_map

SOURCE = Path(__file__).with_name("hopper_matmul.cu")
LINES = SOURCE.read_text().splitlines()
MISTAKES = {
    "the producer does not wait until its stage is empty": (1, "race", "the asynchronous copy .* writes tile_a", "tma_load(tile_a"),
    "the consumers do not wait until their stage is full": (2, "race", "the wgmma .* reads tile_a.* asynchronous copy .* wrote", "wgmma<"),
    "a stage is handed back before its wgmma is done": (3, "race", "writes tile_a.* which the wgmma of .* read", "tma_load(tile_a"),
    "no proxy fence before the copy engine reads": (4, "race", r"reads tile_c.* no fence_proxy_async\(\)", "tma_store"),
    "the descriptor's swizzle is not the tensor map's": (5, "misaligned", "swizzle of 64 bytes .* swizzle of 128 bytes", "wgmma<"),
    "no wgmma_fence": (6, "race", r"no wgmma_fence\(\) came before", "wgmma<"),
    "no wgmma_commit": (7, "race", r"no wgmma_commit\(\)", "= d[i]"),
    "more bytes are expected than come": (8, "deadlock", "wait at mbarrier_wait", "mbarrier_wait(&full"),
    "the block leaves while its tile is being stored": (9, "race", r"leaves the kernel .* asynchronous copy .*tma_wait_read\(\)", "tma_store"),
}


def matmul(mistake: int = 0) -> Kernel:
    return Kernel(SOURCE, "matmul", defines={"MISTAKE": mistake})


def problem(m: int, n: int, k: int, device: str = "cpu"):
    generator = torch.Generator().manual_seed(m + n + k)
    a, b = (torch.randn((rows, k), generator=generator).to(device, torch.bfloat16) for rows in (m, n))
    c = torch.full((m, n), float("nan"), device=device)
    args = (tensor_map(a, (64, 64), swizzle=128), tensor_map(b, (32, 64), swizzle=128), tensor_map(c, (64, 32)), k)
    return a, b, c, (-(-n // 32), -(-m // 64)), args


@pytest.mark.parametrize("m, n, k", [(64, 32, 64), (100, 72, 264), (1, 4, 8), (33, 36, 640)])
def test_matmul_is_right(m, n, k, device):
    a, b, c, grid, args = problem(m, n, k, device)
    matmul()(grid, 160, args)
    torch.testing.assert_close(c.double(), a.double() @ b.double().T, rtol=1e-5, atol=1e-5 * k**0.5)


def test_matmul_is_clean_under_the_sanitizer():
    a, b, c, grid, args = problem(100, 36, 320)
    report = sanitize(matmul(), grid, 160, args, write_back=True)
    assert report.clean, report
    torch.testing.assert_close(c.double(), a.double() @ b.double().T, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_found_and_named(mistake):
    number, kind, words, place = MISTAKES[mistake]
    *_, grid, args = problem(64, 32, 320)
    report = sanitize(matmul(number), grid, 160, args)
    named = [finding for finding in report.findings if finding.kind == kind and re.search(words, finding.text)]
    assert named, report
    assert place in LINES[named[0].line - 1], report
    assert {finding.kind for finding in report.findings} <= {kind, "deadlock"}, report


def test_matmul_compiles_for_hopper_without_spills():
    resources = matmul().resources("sm_90a")
    assert resources.spill_store_bytes == 0 and resources.stack_bytes == 0
