"""v5 of `quant_matmul`, for few and for many rows of x: every scheme at partial tiles, clusters that share k, which tiles are chosen."""

import pytest
import torch

from labkernels.cuda import sanitizing
from labkernels.quant.v5_variants import CONFIGS, FEW, MANY, VARIANTS, _kernel, best_config, configured
from tests.quant.test_tensor_cores import assert_right, inputs

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CASES = [  # configuration, (m, n, k), scheme, group size, dtype of x
    ("256x16/2", (5, 264, 400), "int4", 128, torch.bfloat16),
    ("128x16/3", (20, 136, 1000), "nf4", 32, torch.float16),
    ("128x32/1", (30, 136, 200), "int8", None, torch.bfloat16),
    ("128x64", (70, 264, 400), "int4", 32, torch.bfloat16),
    ("128x128", (100, 136, 300), "fp8", None, torch.float16),
    ("128x256", (300, 264, 400), "nf4", 64, torch.bfloat16),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config, sizes, scheme, group_size, dtype", CASES)
def test_schemes_at_partial_tiles(config, sizes, scheme, group_size, dtype, device):
    x, weight = inputs(*sizes, scheme, group_size, dtype, device)
    for blocks in (None, 1, 3) if config in MANY else (None,):
        assert_right(configured(config, x, weight, blocks=blocks), x, weight)


# They stand for all of them: each takes NVRTC a second to compile.
CHOSEN = ["256x16/1", "192x16/2", "128x16/4", "192x32/2", "128x64/3", "192x64/2", "192x128/2", "128x128/2", "192x64", "128x128", "128x256"]


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


@pytest.mark.parametrize("config, sizes, scheme, group_size, dtype", [CASES[0], CASES[2], CASES[3]])
def test_clean_under_the_sanitizer(config, sizes, scheme, group_size, dtype):
    x, weight = inputs(*sizes, scheme, group_size, dtype)
    with sanitizing():
        assert_right(configured(config, x, weight), x, weight)


def test_compiles_without_spills_or_serialized_wgmma():
    names = [*MANY, *(name for name, few in FEW.items() if few.splits in (1, 8))]
    for name in names:
        config, scheme, group_size = CONFIGS[name], *(("int4", 128) if CONFIGS[name].consumers == 2 else ("nf4", 64))
        compiled = _kernel(config, torch.bfloat16, scheme, group_size)
        resources = compiled.resources("sm_90a")
        assert resources.spill_store_bytes == resources.stack_bytes == 0, resources
        assert "serialized" not in compiled.compiled("sm_90a").log


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
    assert best_config(4096, 4096, 4096, 132) == "128x256"
    assert best_config(512, 4096, 4096, 132) in ("128x128", "128x128/1")  # 128 tiles: one for each multiprocessor


def test_what_it_refuses():
    accepts = VARIANTS["v5_hopper"].accepts
    x, weight = inputs(5, 264, 400, "int4", 128, torch.bfloat16)
    assert accepts(x, weight) is None
    assert accepts(x.float(), weight) == "takes x in bfloat16 and float16"
    assert "n in multiples of 8" in accepts(x, inputs(5, 20, 400, "int4", 128, torch.bfloat16)[1])
