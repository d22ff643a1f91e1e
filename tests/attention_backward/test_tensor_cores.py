"""v2 of `attention_backward`: right in every option, clean, equal bits in deterministic mode, no bank conflicts and no spills."""

from functools import partial

import pytest
import torch

from labkernels.attention_backward import tensor_cores
from labkernels.attention_backward.packing import varlen
from labkernels.attention_backward.tensor_cores import FILE, TILINGS, VARIANT, configured
from labkernels.cuda import sanitizing
from labkernels.cuda.emulator import profile
from labkernels.cuda.variants import kernel
from labkernels.operation import ops
from tests.attention_backward.backward_cases import LENGTHS, MASKS, WINDOWS, assert_right, complete
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
MAIN = "attention_backward_tensor_cores"


def inputs_of(**shape) -> dict:
    return ops["attention_backward"].make_inputs(torch.Generator().manual_seed(0), "cpu", torch.bfloat16, **complete(shape))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", WINDOWS, ids=str)
def test_windows(shape, device):
    assert_right(VARIANT.fn, shape, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_masks(shape, device):
    assert_right(VARIANT.fn, shape, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["d128", "d128_small", "d256"])
def test_wide_heads_of_halves(name, device):
    tiling = TILINGS[name]
    shape = {"seq_len": 100, "kv_len": 140, "causal": True, "head_dim": tiling.head_dim - 24, "heads": 2, "kv_heads": 1}
    assert_right(partial(configured, tiling), shape, torch.float16, device)


@pytest.mark.parametrize("device", DEVICES)
def test_deterministic_gives_equal_bits(device):
    shape = {"seq_len": 200, "kv_len": 300, "causal": True, "heads": 2, "kv_heads": 1, "deterministic": True}
    assert_right(VARIANT.fn, shape, device=device, repeat=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", LENGTHS, ids=str)
def test_packed_sequences(shape, device):
    assert_right(varlen(VARIANT.fn), shape, device=device)


def test_clean_under_the_sanitizer():
    with sanitizing():
        VARIANT.fn(**inputs_of(seq_len=135, kv_len=140, causal=True))
        VARIANT.fn(**inputs_of(seq_len=70, kv_len=130, head_dim=40, heads=2, kv_heads=1, deterministic=True))


@pytest.mark.parametrize("name", ["d64", "d128"])
def test_shared_memory_has_no_bank_conflicts(name, monkeypatch):
    reports = []

    def profiled(*template):
        run = kernel(*template)
        return lambda *launch: reports.append(profile(run, *launch))

    monkeypatch.setattr(tensor_cores, "kernel", profiled)
    tiling = TILINGS[name]
    inputs = inputs_of(seq_len=3 * tiling.queries, kv_len=tiling.keys, head_dim=tiling.head_dim)
    configured(tiling, **inputs)
    _, main, rows = reports
    lines = main.by_line
    # Where lanes part in the emulator's roundings, their requests are counted apart: those of whole warps are judged, of 16 bytes a lane.
    whole = lines[(lines.shared_load_bytes == 512 * lines.shared_load_requests) & (lines.shared_load_requests > 0)]
    assert len(whole) >= 3 and whole.shared_load_conflicts.sum() == 0
    stores = lines[(lines.shared_store_bytes == 128 * lines.shared_store_requests) & (lines.shared_store_requests > 50)]
    assert len(stores) >= 2 and stores.shared_store_conflicts.sum() == 0
    assert rows.shared_load_requests > 0 and rows.shared_load_conflicts == rows.shared_store_conflicts == 0


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("name", ["d64", "d128", "d128_small"])
def test_compiles_without_spills(name, arch):
    resources = taken(kernel(FILE, MAIN, torch.bfloat16, TILINGS[name], 0, "false"), arch)
    assert resources.spill_stores == resources.stack == 0, resources


def test_a_tiling_is_chosen_that_fits(monkeypatch):
    q = torch.empty(1, 1, 1, 128, dtype=torch.bfloat16)
    assert tensor_cores.best_tiling(q) == TILINGS["d128"]
    monkeypatch.setattr(tensor_cores, "_shared_memory", lambda device: 163 * 1024)  # an A100's
    assert tensor_cores.best_tiling(q) == TILINGS["d128_small"]
    assert tensor_cores.best_tiling(torch.empty(1, 1, 1, 136)) == TILINGS["d256_small"]


def test_refusals_say_why():
    rows, lse = torch.zeros(1, 2, 10, 64, dtype=torch.bfloat16), torch.zeros(1, 2, 10)
    assert VARIANT.accepts(rows, rows, rows, rows, rows, lse) is None
    assert VARIANT.accepts(*[rows.float()] * 5, lse) == "takes bfloat16 and float16"
    assert VARIANT.accepts(torch.zeros(1).bfloat16().expand(1, 2, 10, 64), rows, rows, rows, rows, lse) == "takes rows that lie on 16 bytes, grad_out's do not"
    wide = torch.zeros(1, 1, 3, 264, dtype=torch.bfloat16)
    assert VARIANT.accepts(wide, wide, wide, wide, wide, lse) == "takes a head_dim of at most 256"
