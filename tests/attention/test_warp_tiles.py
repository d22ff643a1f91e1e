"""v4 of `attention`: right and free of races with every tile it may take, and no register spilled."""

import pytest
import torch

from labkernels.attention import warp_tiles
from labkernels.attention.op import OP, shape
from labkernels.attention.reference import reference
from labkernels.cuda import sanitizing
from labkernels.cuda.variants import kernel
from labkernels.lab.compare import doubled
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TILES = [(8, 128), (4, 128), (8, 64), (4, 64), (4, 32)]


def inputs_of(device="cpu", dtype=torch.float32, **sizes) -> dict:
    return OP.make_inputs(torch.Generator().manual_seed(0), device, dtype, **sizes)


def assert_right(result, inputs) -> None:
    relative = {torch.float32: 2e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}[result.dtype]
    torch.testing.assert_close(result.double(), reference(**doubled(inputs)), rtol=relative, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tile", TILES)
def test_every_tile_is_right(tile, device):
    for sizes in (
        shape(140, kv_len=280),
        shape(150, kv_len=140, causal=True, heads=2, kv_heads=1),
        shape(1, kv_len=3, causal=True),
        shape(200, kv_len=330, window=(40, 3)),
    ):
        inputs = inputs_of(device, **sizes)
        assert_right(warp_tiles.attention(**inputs, tile=tile), inputs)


@pytest.mark.parametrize("tile", [(8, 128), (4, 64)])  # the check's small shapes take (4, 32)
def test_larger_tiles_have_no_race(tile):
    for sizes in (shape(140, kv_len=260, causal=True), shape(70, kv_len=200, window=(30, 0))):
        inputs = inputs_of(**sizes)
        with sanitizing():
            assert_right(warp_tiles.attention(**inputs, tile=tile), inputs)


@pytest.mark.parametrize("device", DEVICES)
def test_wide_heads(device):
    for head_dim in (160, 256):
        inputs = inputs_of(device, **shape(70, kv_len=90, head_dim=head_dim, causal=True))
        assert_right(warp_tiles.attention(**inputs), inputs)


def test_packed_and_whole_agree_to_the_bit():
    inputs = inputs_of(**shape(70, batch=2, heads=2, causal=True))
    whole = warp_tiles.attention(**inputs, tile=(4, 64))
    q, k, v = (inputs[name].transpose(1, 2).flatten(0, 1) for name in "qkv")
    ends = torch.tensor([0, 70, 140], dtype=torch.int32)
    packed = warp_tiles.varlen(q, k, v, ends, ends, causal=True, tile=(4, 64))
    assert torch.equal(packed.view(2, 70, 2, 64).transpose(1, 2), whole)


def test_the_tile_fits_the_problem_and_the_registers():
    def best(seq_len, kv_len, heads, head_dim=128, masked=False):
        return warp_tiles.best_tile(torch.empty(1, heads, seq_len, head_dim), heads, seq_len, kv_len, masked)

    assert best(4096, 4096, 32) == best(512, 512, 32) == (8, 128)
    assert best(512, 512, 8) == best(64, 4096, 1024) == (4, 128)
    assert best(64, 32, 8) == (4, 32)
    assert best(4096, 4096, 32, masked=True) == (8, 64)
    assert best(4096, 4096, 32, head_dim=256) == (4, 64) and best(4096, 4096, 32, head_dim=256, masked=True) == (4, 32)


def test_what_it_refuses():
    accepts = warp_tiles.VARIANT.accepts
    assert accepts(**inputs_of(**shape(3, head_dim=300))) == "takes a head_dim of at most 256"
    q, k, v = (inputs_of(**shape(32, head_dim=32))[name] for name in "qkv")
    assert accepts(q=q, k=k.transpose(2, 3), v=v) == "takes rows whose elements are neighbours in memory, k's are not"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(
    "dtype, head_dim, warps, keys, width, mask",
    [
        (torch.float32, 128, 8, 128, 4, 0),
        (torch.float32, 64, 8, 128, 4, 0),
        (torch.bfloat16, 128, 8, 128, 8, 0),
        (torch.float32, 128, 8, 64, 4, 2),
        (torch.float16, 128, 8, 64, 1, 1),
        (torch.float32, 256, 4, 64, 4, 0),
        (torch.bfloat16, 256, 4, 32, 8, 3),
    ],
)
def test_no_register_is_spilled(dtype, head_dim, warps, keys, width, mask, arch):
    resources = taken(kernel(warp_tiles.SOURCE, "attention_warp_tiles", dtype, head_dim, warps, keys, width, mask), arch)
    assert resources.spill_stores == resources.stack == 0, resources
