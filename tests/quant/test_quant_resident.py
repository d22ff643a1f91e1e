"""v7 of `quant_matmul`, x in registers: every scheme at partial tiles, warps without a share of k, blocks that meet in shared memory and in memory."""

from dataclasses import replace

import pytest
import torch

from labkernels.cuda import sanitizing
from labkernels.cuda.kernel import Kernel
from labkernels.lab.check import check
from labkernels.quant import quantize, v7_variants
from labkernels.quant.v7_variants import FILE, VARIANTS, Resident, _kernel, _resident_for, resident, resident_for, shared_bytes, v7_resident
from tests.quant.test_tensor_cores import assert_right, inputs

BF16, F16 = torch.bfloat16, torch.float16
CASES = [  # configuration, (m, n, k), scheme, group size, dtype of x
    (Resident(2, 1, 2, 2, 2), (16, 200, 1000), "int4", 128, BF16),
    (Resident(2, 1, 1, 3, 2, clustered=False), (13, 136, 1500), "int4", 64, BF16),
    (Resident(2, 1, 2, 1, 3, batch=1), (5, 200, 300), "int4", 32, F16),
    (Resident(2, 2, 2, 1, 2, tiles=1), (8, 40, 900), "nf4", 64, BF16),
    (Resident(2, 1, 2, 2, 2, clustered=False, tiles=1), (11, 72, 700), "nf4", 128, F16),
    (Resident(2, 2, 3, 2, 1, tiles=1), (16, 72, 700), "int8", None, BF16),
    (Resident(4, 2, 2, 1, 5), (3, 136, 520), "fp8", None, F16),
    (Resident(4, 1, 2, 1, 1), (1, 8, 1), "int4", 128, BF16),
]


@pytest.mark.parametrize("config, sizes, scheme, group_size, dtype", CASES)
def test_schemes_at_partial_tiles_give_the_same_bits_each_time(config, sizes, scheme, group_size, dtype):
    x, weight = inputs(*sizes, scheme, group_size, dtype)
    first = resident(config, x, weight)
    assert_right(first, x, weight)
    assert torch.equal(first, resident(config, x, weight))


def test_where_blocks_meet_does_not_matter():
    x, weight = inputs(13, 136, 1500, "int4", 128, BF16)
    clustered = resident(Resident(2, 1, 2, 3, 2), x, weight)
    assert torch.equal(clustered, resident(Resident(2, 1, 2, 3, 2, clustered=False), x, weight))


def test_every_row_and_column_comes_to_its_place():
    """x is some columns after the others of the unit matrix: the result is the weight."""
    _, weight = inputs(1, 48, 512, "int4", 128, BF16)
    for first in range(0, 512, 144):
        x = torch.eye(512, dtype=BF16)[first : first + 16]
        want = weight.dequantize()[:, first : first + 16].t()
        torch.testing.assert_close(resident(Resident(2, 1, 2, 1, 2), x, weight).float(), want, rtol=2**-7, atol=1e-5)


def test_what_is_beyond_k_is_not_read_and_x_may_lie_anywhere():
    x, weight = inputs(5, 136, 77, "int8", None, BF16)
    around = torch.full((5, 96), float("nan"), dtype=x.dtype)
    around[:, 3:80] = x
    config = Resident(2, 2, 2, 1, 3)
    assert torch.equal(resident(config, around[:, 3:80], weight), resident(config, x, weight))


@pytest.mark.parametrize("config, sizes, scheme, group_size, dtype", [CASES[0], CASES[1], CASES[5]])
def test_clean_under_the_sanitizer(config, sizes, scheme, group_size, dtype):
    x, weight = inputs(*sizes, scheme, group_size, dtype)
    with sanitizing():
        assert_right(resident(config, x, weight), x, weight)


def test_zeros_that_are_not_taken_off_are_seen(monkeypatch):
    mistake = FILE.read_text().replace("off * of_x.y", "off * of_x.x")
    assert mistake != FILE.read_text()

    def wrong(*key):
        kernel = _kernel(*key)
        return Kernel(replace(kernel.source, text=mistake), kernel.name)

    x, weight = inputs(5, 72, 300, "int4", 128, BF16)
    assert_right(resident(Resident(2, 1, 2, 1, 3), x, weight), x, weight)
    monkeypatch.setattr(v7_variants, "_kernel", wrong)
    with pytest.raises(AssertionError):
        assert_right(resident(Resident(2, 1, 2, 1, 3), x, weight), x, weight)


@pytest.mark.gpu
def test_passes_the_whole_check():
    check("quant_matmul", "v7_resident", quiet=True)


@pytest.mark.gpu
@pytest.mark.parametrize("m, n, k", [(16, 32768, 1024), (11, 4096, 4096), (5, 2048, 11008), (16, 512, 24576)])
@pytest.mark.parametrize("scheme, group_size", [("int4", 128), ("int4", 32), ("nf4", 64), ("int8", None)])
def test_one_block_two_or_more_share_k_and_give_the_same_bits_each_time(m, n, k, scheme, group_size):
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(m, k, generator=generator, device="cuda").bfloat16()
    weight = quantize(torch.randn(n, k, generator=generator, device="cuda") / k**0.5, scheme, group_size)
    first = v7_resident(x, weight)
    assert_right(first, x, weight)
    assert all(torch.equal(first, v7_resident(x, weight)) for _ in range(3))


@pytest.mark.gpu
@pytest.mark.parametrize("k", [4096, 6144])
def test_a_chain_launched_early_gives_the_same_bits_as_one_that_waits(k):
    """Each product needs the one before, and blocks meet in a cluster or in memory. What begins too early reads an old x, or an old sum."""
    generator = torch.Generator("cuda").manual_seed(0)
    weights = [quantize(torch.randn(k, k, generator=generator, device="cuda") / k**0.5, "int4") for _ in range(2)]
    x = torch.randn(16, k, generator=generator, device="cuda").bfloat16()
    for _ in range(5):
        results = []
        for wait in (False, True):
            y = x
            for i in range(12):
                y = v7_resident(y, weights[i % 2])
                if wait:
                    torch.cuda.synchronize()
            results.append(y)
        assert torch.equal(*results) and results[0].isfinite().all() and results[0].any()


SCHEMES = [("int4", 128), ("int4", 64), ("int4", 32), ("nf4", 128), ("nf4", 32), ("int8", None), ("fp8", None)]


@pytest.mark.parametrize("scheme, group_size", SCHEMES)
@pytest.mark.parametrize("columns", [1, 2])
def test_two_blocks_fit_a_multiprocessor_without_spills(scheme, group_size, columns):
    for units in (32, 86) if group_size == 128 else (32,):
        config = _resident_for(columns, scheme, group_size, 11008, units, 132, True)
        resources = _kernel(BF16, scheme, group_size or 0, columns, replace(config, steps=0)).resources("sm_90a")
        assert resources.spill_store_bytes == resources.stack_bytes == 0, resources
        assert resources.occupancy(32 * config.warps, shared_bytes(config, scheme, group_size, columns)).blocks_per_sm >= 2, (config, resources)


def test_the_choice_fills_the_gpu():
    for n, units in ((4096, 16), (11008, 16), (4096, 43), (28672, 32), (128256, 16)):
        config = _resident_for(2, "int4", 128, n, units, 132, True)
        blocks = -(-(-(-n // config.rows)) // config.steps) * config.splits
        assert blocks / (-(-blocks // 264) * 264) > 0.8 and config.steps <= 16, (n, units, config)
    assert _resident_for(2, "int4", 128, 4096, 200, 132, True) is None


def test_what_it_refuses():
    accepts = VARIANTS["v7_resident"].accepts
    x, weight = inputs(16, 264, 400, "int4", 128, BF16)
    assert accepts(x, weight) is None and resident_for(x, weight).splits == 1
    assert_right(v7_resident(x, weight), x, weight)
    assert accepts(torch.cat((x, x)), weight) == "up to 16 rows of x"
    assert "multiples of 8" in accepts(x, inputs(5, 20, 400, "int4", 128, BF16)[1])
    assert "bfloat16" in accepts(x.float(), weight)
