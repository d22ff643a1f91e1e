"""v3 of `attention_backward`: every option in the emulator, equal bits in deterministic mode, and what it refuses."""

import pytest
import torch

from labkernels.attention_backward.hopper import FILE, block_q
from labkernels.attention_backward.variants import VARIANTS, VARLEN
from labkernels.cuda import sanitizing
from labkernels.cuda.variants import kernel
from labkernels.operation import ops
from tests.attention_backward.backward_cases import LENGTHS, MASKS, WINDOWS, assert_right, complete
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
V3 = VARIANTS["v3_hopper"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", WINDOWS, ids=str)
def test_windows(shape, device):
    assert_right(V3.fn, shape, device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_wide_heads_of_halves(device):
    shape = {"seq_len": 100, "kv_len": 140, "causal": True, "head_dim": 104, "heads": 2, "kv_heads": 1}
    assert_right(V3.fn, shape, torch.float16, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [MASKS[0], pytest.param(MASKS[2], marks=pytest.mark.gpu), pytest.param(MASKS[3], marks=pytest.mark.gpu)], ids=str)
def test_masks(shape, device):
    assert_right(V3.fn, shape, device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_deterministic_gives_equal_bits(device):
    shape = {"seq_len": 300, "kv_len": 400, "causal": True, "heads": 2, "kv_heads": 1, "deterministic": True}
    assert_right(V3.fn, shape, device=device, repeat=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", LENGTHS, ids=str)
def test_packed_sequences(shape, device):
    assert_right(VARLEN["v3_hopper"].fn, shape, device=device)


def test_clean_under_the_sanitizer():
    shape = complete({"seq_len": 135, "kv_len": 140, "causal": True})
    inputs = ops["attention_backward"].make_inputs(torch.Generator().manual_seed(0), "cpu", torch.bfloat16, **shape)
    with sanitizing():
        V3.fn(**inputs)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_compiles_without_spills(head_dim):
    template = torch.bfloat16, head_dim, block_q(head_dim), 0, "false"
    resources = taken(kernel(FILE, "attention_backward_hopper", *template), "sm_90a")
    assert resources.spill_stores == resources.stack == 0, resources


def test_refusals_say_why():
    rows = torch.zeros(1, 2, 10, 64, dtype=torch.bfloat16)
    lse = torch.zeros(1, 2, 10)
    assert V3.accepts(rows, rows, rows, rows, rows, lse) is None
    assert V3.accepts(rows, *[rows.float()] * 3, rows, lse) == "takes bfloat16 and float16"
    assert V3.accepts(torch.zeros(1).bfloat16().expand(1, 2, 10, 64), rows, rows, rows, rows, lse) == "takes rows that lie on 16 bytes, grad_out's do not"
    wide = torch.zeros(1, 1, 3, 136, dtype=torch.bfloat16)
    assert V3.accepts(wide, wide, wide, wide, wide, lse) == "takes a head_dim of at most 128"
