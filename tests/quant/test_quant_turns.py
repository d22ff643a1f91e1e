"""v7 and v8 of `quant_matmul`: turns at the tensor cores, W unpacked into shared memory; and that no kernel of v5 to v8 waits for registers for ever."""

import re
import subprocess

import pytest
import torch

from labkernels.cuda import sanitizing
from labkernels.cuda.sass import nvdisasm
from labkernels.quant.v5_variants import CONFIGS, Few, _kernel, configured
from labkernels.quant.v7_variants import TURNS, UNPACKED, VARIANTS, best_config
from tests.quant.test_tensor_cores import assert_right, inputs

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ALL = {"v5": CONFIGS, "v7": TURNS, "v8": UNPACKED}
CASES = [  # which, configuration, (m, n, k), scheme, group size, dtype of x
    ("v7", "256x64/3", (70, 264, 400), "int4", 128, torch.bfloat16),
    ("v7", "128x16/2", (5, 136, 1000), "nf4", 32, torch.float16),
    ("v7", "192x128", (100, 264, 300), "int8", None, torch.bfloat16),
    ("v7", "128x256", (300, 136, 400), "int4", 64, torch.float16),
    ("v8", "128x128", (70, 264, 400), "int4", 32, torch.bfloat16),
    ("v8", "192x128", (100, 136, 300), "nf4", 64, torch.bfloat16),
    ("v8", "128x256", (300, 264, 400), "fp8", None, torch.float16),
    ("v8", "128x128", (3, 136, 130), "int8", None, torch.bfloat16),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("which, config, sizes, scheme, group_size, dtype", CASES)
def test_schemes_at_partial_tiles(which, config, sizes, scheme, group_size, dtype, device):
    x, weight = inputs(*sizes, scheme, group_size, dtype, device)
    chosen = ALL[which][config]
    for blocks in (None, 3) if not isinstance(chosen, Few) else (None,):
        assert_right(configured(chosen, x, weight, blocks=blocks), x, weight)


@pytest.mark.gpu
@pytest.mark.parametrize("n, k", [(4096, 4096), (11008, 4096), (4096, 11008), (28672, 8192)])
@pytest.mark.parametrize("m", [1, 16, 32, 64, 128, 256, 512])
def test_what_is_chosen_at_a_models_sizes(m, n, k):
    x = torch.randn(m, k, generator=torch.Generator("cuda").manual_seed(0), device="cuda").bfloat16()
    _, weight = inputs(1, n, k, "int4", 128, torch.bfloat16, "cuda")
    for variant in VARIANTS.values():
        results = [variant(x, weight) for _ in range(3)]
        assert_right(results[0], x, weight)
        for again in results[1:]:
            torch.testing.assert_close(results[0], again, rtol=0, atol=0)


@pytest.mark.parametrize("which, config, sizes, scheme, group_size, dtype", [CASES[0], CASES[2], CASES[4]])
def test_clean_under_the_sanitizer(which, config, sizes, scheme, group_size, dtype):
    x, weight = inputs(*sizes, scheme, group_size, dtype)
    with sanitizing():
        assert_right(configured(ALL[which][config], x, weight), x, weight)


KERNELS = [("v7", "256x64/3"), ("v7", "256x16/1"), ("v7", "192x64/2"), ("v7", "192x128/1"), ("v7", "128x16/4"), ("v7", "192x128"), ("v7", "128x256"),
           ("v8", "128x256"), ("v8", "192x128"), ("v5", "192x128")]  # fmt: skip


@pytest.mark.parametrize("which, config", KERNELS)
def test_registers_suffice_without_spills_or_serialized_wgmma(which, config):
    """A block has as many registers as it is launched with. A warpgroup that asks for more than the others gave back waits for ever."""
    config = ALL[which][config]
    compiled = _kernel(config, torch.bfloat16, *(("int4", 128) if config.consumers != 2 else ("nf4", 64)))
    resources, cubin = compiled.resources("sm_90a"), compiled.compiled("sm_90a")
    assert resources.spill_store_bytes == resources.stack_bytes == 0 and "serialized" not in cubin.log, resources
    sass = subprocess.run([nvdisasm(), "-c", str(cubin.path)], capture_output=True, text=True, check=True).stdout
    producer, consumer = sorted(int(value, 16) for value in set(re.findall(r"USETMAXREG.*?(0x[0-9a-f]+)", sass)))
    assert producer + config.consumers * consumer <= (config.consumers + 1) * -(-resources.registers // 8) * 8


def test_the_choice_has_no_more_columns_than_x_has_rows():
    for n, k in ((4096, 4096), (11008, 4096), (28672, 8192)):
        for m in (1, 16, 30, 64):
            assert TURNS[best_config(True, m, n, k, 132)].tokens < 2 * max(16, m)
        assert UNPACKED[best_config(False, 4096, n, k, 132)].tokens == 256
