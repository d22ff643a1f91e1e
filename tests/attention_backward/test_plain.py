"""v1 of `attention_backward`: right in every option and dtype, clean, the same bits each time."""

import pytest
import torch

from labkernels.attention_backward.variants import FOLDER, VARIANTS, VARLEN
from labkernels.cuda import sanitizing
from labkernels.cuda.variants import kernel
from labkernels.lab.check import check
from labkernels.operation import ops
from tests.attention_backward.backward_cases import LENGTHS, MASKS, WINDOWS, assert_right, complete

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
V1 = VARIANTS["v1_plain"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", WINDOWS + MASKS, ids=str)
def test_options(shape, device):
    assert_right(V1.fn, {**shape, "deterministic": True}, torch.float32, device, repeat=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [7, 128, 256])
def test_narrow_dtypes_and_head_dims(head_dim, dtype, device):
    assert_right(V1.fn, {"seq_len": 34, "kv_len": 50, "causal": True, "head_dim": head_dim}, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", LENGTHS, ids=str)
def test_packed_sequences(shape, device):
    assert_right(VARLEN["v1_plain"].fn, shape, torch.float32, device)


def test_check_passes_where_pytorchs_own_sizes_are_small():
    assert check("attention_backward", "v1_plain", seeds=(1,), dtypes=["float32"], batch=1, heads=1, quiet=True).passed > 10


def test_clean_under_the_sanitizer():
    op = ops["attention_backward"]
    for shape in ({"seq_len": 9, "kv_len": 20, "causal": True, "mask": "bias"}, {"seq_len": 5, "kv_len": 11, "heads": 4, "kv_heads": 2, "head_dim": 40}):
        inputs = op.make_inputs(torch.Generator().manual_seed(0), "cpu", torch.float32, **complete(shape))
        with sanitizing():
            V1.fn(**inputs)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("name", ["attention_backward_queries", "attention_backward_keys"])
def test_compiles_without_spills(name, arch):
    resources = kernel(FOLDER / "v1_plain.cu", name, torch.float32, 8, 2).resources(arch)
    assert resources.spill_store_bytes == resources.stack_bytes == 0, resources


def test_refusals_say_why():
    row = torch.zeros(1, 1, 3, 264)
    assert V1.accepts(row, row, row, row, row, row[..., 0]) == "takes a head_dim of at most 256"
    row = torch.zeros(1, 1, 3, 64)
    turned = torch.zeros(1, 1, 64, 3).transpose(2, 3)
    assert V1.accepts(turned, row, row, row, row, row[..., 0]) == "takes rows whose elements are neighbours in memory, grad_out's are not"
    assert V1.accepts(row, row, row, row, row, row[..., 0]) is None
