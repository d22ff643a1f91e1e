"""v5 of `quant_matmul`, for few and for many rows of x: every scheme at partial tiles, clusters that share k, tiles cut along k, which are chosen."""

import re
import subprocess

import pytest
import torch

from labkernels.cuda import sanitizing
from labkernels.cuda.sass import nvdisasm
from labkernels.quant.v5_variants import CONFIGS, FEW, MANY, VARIANTS, _kernel, best_config, best_parts, configured, most_of_a_tile
from tests.quant.test_tensor_cores import assert_right, inputs

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CASES = [  # configuration, (m, n, k), scheme, group size, dtype of x
    ("256x16/2", (5, 264, 400), "int4", 128, torch.bfloat16),
    ("128x16/3", (20, 136, 1000), "nf4", 32, torch.float16),
    ("128x32/1", (30, 136, 200), "int8", None, torch.bfloat16),
    ("128x64", (70, 264, 400), "int4", 32, torch.bfloat16),
    ("128x128", (100, 136, 300), "fp8", None, torch.float16),
    ("128x256", (300, 264, 400), "nf4", 64, torch.bfloat16),
    ("128x192", (200, 264, 600), "int4", 128, torch.float16),
    ("128x128 by 2", (130, 264, 1000), "int8", None, torch.bfloat16),
    ("128x256 by 2", (260, 136, 600), "int4", 64, torch.bfloat16),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config, sizes, scheme, group_size, dtype", CASES)
def test_schemes_at_partial_tiles(config, sizes, scheme, group_size, dtype, device):
    x, weight = inputs(*sizes, scheme, group_size, dtype, device)
    for blocks, parts in ((None, None), (1, None), (3, 2), (5, 5)) if config in MANY else ((None, None),):
        assert_right(configured(config, x, weight, blocks=blocks, parts=parts), x, weight)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", ["128x64", "128x128 by 2"])
def test_tiles_cut_along_k_give_the_same_bits_each_time_and_leave_the_counters_at_zero(config, device, counters_used):
    x, weight = inputs(70, 264, 1000, "int4", 128, torch.bfloat16, device)
    for parts in (2, 5, 7, 9):  # of 3 or 5 tiles of 8 steps
        first = configured(config, x, weight, blocks=9, parts=parts)
        assert_right(first, x, weight)
        for _ in range(3):
            torch.testing.assert_close(configured(config, x, weight, blocks=9, parts=parts), first, rtol=0, atol=0)
    assert bool(counters_used) == (config == "128x64") and not any(counters.any() for counters in counters_used)


def test_parts_begin_where_tiles_do_if_that_costs_little():
    assert most_of_a_tile(86, 32, 132) == 3 and most_of_a_tile(86, 32, 129) == 2
    assert best_parts(86, 32, 132) == 129
    assert best_parts(2, 1, 132) == 2  # no more parts than steps


# They stand for all of them: each takes NVRTC a second to compile.
CHOSEN = ["256x16/1", "192x16/2", "128x16/4", "192x32/2", "128x64/3", "192x64/2"]
CHOSEN += ["192x64", "128x128", "192x128", "128x192", "128x256", "128x128 by 2", "192x128 by 2", "128x256 by 2"]


@pytest.mark.gpu
@pytest.mark.parametrize("config, scheme, group_size", [*((name, "int4", 128) for name in CHOSEN), ("192x16/2", "codebook", 32), ("192x64/2", "int8", None)])
def test_chosen_configurations_on_a_gpu(config, scheme, group_size):
    for m, n, k in ((CONFIGS[config].tokens + 3, 1000, 1040), (2, 4096, 2048)):
        x = torch.randn(m, k, generator=torch.Generator("cuda").manual_seed(0), device="cuda").bfloat16()
        _, weight = inputs(1, n, k, "nf4" if scheme == "codebook" else scheme, group_size, torch.bfloat16, "cuda")
        results = [configured(config, x, weight) for _ in range(2)]
        assert_right(results[0], x, weight)
        torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_more_blocks_than_steps_of_k_and_the_smallest_sizes(device):
    for sizes in ((1, 8, 1), (7, 8, 130)):
        for config in ("128x16/3", "128x64"):
            x, weight = inputs(*sizes, "int4", 32, torch.bfloat16, device)
            assert_right(configured(config, x, weight), x, weight)
    assert configured("128x64", x[:0], weight).shape == (0, 8)


@pytest.mark.parametrize("config, sizes, scheme, group_size, dtype", [CASES[0], CASES[2], CASES[3], CASES[7]])
def test_clean_under_the_sanitizer(config, sizes, scheme, group_size, dtype):
    x, weight = inputs(*sizes, scheme, group_size, dtype)
    with sanitizing():
        assert_right(configured(config, x, weight), x, weight)


def test_registers_suffice_without_spills_or_serialized_wgmma():
    """A block has as many registers as it is launched with. A warpgroup that asks for more than the others gave back waits for ever."""
    names = [*MANY, *(name for name, few in FEW.items() if few.splits in (1, 8))]
    for name in names:
        config, scheme, group_size = CONFIGS[name], *(("int4", 128) if CONFIGS[name].consumers == 2 else ("nf4", 64))
        compiled = _kernel(config, torch.bfloat16, scheme, group_size)
        resources, cubin = compiled.resources("sm_90a"), compiled.compiled("sm_90a")
        assert resources.spill_store_bytes == resources.stack_bytes == 0, resources
        assert "serialized" not in cubin.log
        if name in ("256x16/1", "192x64/1", "128x16/1", "192x128", "128x256"):
            sass = subprocess.run([nvdisasm(), "-c", str(cubin.path)], capture_output=True, text=True, check=True).stdout
            producer, consumer = sorted(int(value, 16) for value in set(re.findall(r"USETMAXREG.*?(0x[0-9a-f]+)", sass)))
            assert producer + config.consumers * consumer <= (config.consumers + 1) * -(-resources.registers // 8) * 8


def test_every_configuration_fits_the_shared_memory():
    for name, config in CONFIGS.items():
        for scheme, group_size in (("int4", 32), ("int4", 128), ("nf4", 32), ("nf4", 128), ("int8", None), ("fp8", None)):
            stages, bytes_of_block = config.memory(scheme, group_size)
            blocks = config.blocks if name in FEW else 1
            assert stages >= 3 and blocks * (bytes_of_block + 2048) <= 228 * 1024, (name, scheme, stages, bytes_of_block)


def test_the_choice_fills_the_gpu_and_has_no_more_columns_than_x_has_rows():
    for n, k in ((4096, 4096), (11008, 4096), (28672, 8192)):
        for m in (1, 16, 30, 64):
            chosen = CONFIGS[best_config(m, n, k, 132)]
            blocks = -(-n // chosen.rows) * getattr(chosen, "splits", 1)
            assert blocks / (-(-blocks // 132) * 132) > 0.55, (n, chosen)
            assert chosen.tokens < 2 * max(16, m)


def test_the_choice_is_what_was_fastest_on_an_h200():
    fastest = {
        (128, 4096, 11008): "128x128",  # its 32 tiles in 128 parts
        (256, 4096, 4096): "128x128 by 2",
        (256, 4096, 11008): "128x128 by 2",
        (256, 11008, 4096): "128x256",
        (512, 4096, 11008): "128x256 by 2",
        (1024, 11008, 4096): "128x256",
        (4096, 4096, 11008): "128x256",
    }
    assert {shape: best_config(*shape, 132) for shape in fastest} == fastest


def test_what_it_refuses():
    accepts = VARIANTS["v5_hopper"].accepts
    x, weight = inputs(5, 264, 400, "int4", 128, torch.bfloat16)
    assert accepts(x, weight) is None
    assert accepts(x.float(), weight) == "takes x in bfloat16 and float16"
    assert "n in multiples of 8" in accepts(x, inputs(5, 20, 400, "int4", 128, torch.bfloat16)[1])
