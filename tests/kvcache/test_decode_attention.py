"""Decode attention: every variant right on every kind of cache, the same bits each time, clean, wrong inputs named, no spills."""

import pytest
import torch
import torch.nn.functional as F

import labkernels as lk
from labkernels.errors import ArgumentError
from labkernels.cuda import sanitizing
from labkernels.kvcache import decode_attention, decode_attention_op, layout, tensor_cores
from labkernels.kvcache.decode_attention_op import OP, shape
from labkernels.kvcache.reference import reference
from labkernels.kvcache.tensor_cores import CLUSTERS, GUESSES, TILINGS, Tiling
from labkernels.lab.failure import CheckFailed
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ON_TENSOR_CORES = ["v4_tensor_cores", "v5_cluster", "v6_guess"]


def inputs_of(seed=0, device="cpu", dtype=torch.bfloat16, **sizes):
    generator = torch.Generator().manual_seed(seed)
    return OP.make_inputs(generator, device, dtype, **shape(sizes.pop("batch", 2), sizes.pop("length", 100), **sizes))


def assert_right(got, inputs):
    """Within what rounding the weights and the result to the queries' type may cost."""
    want = reference(**{name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value for name, value in inputs.items()})
    epsilon, q = torch.finfo(inputs["q"].dtype).eps, inputs["q"]
    assert got.shape == q.shape and got.dtype == q.dtype and got.is_contiguous()
    error = (got.double() - want).abs()
    assert (error <= epsilon * (want.abs() + 2)).all(), error.max()
    assert error.norm() <= epsilon * want.norm() + 1e-6


@pytest.mark.parametrize("name", OP.variants)
def test_every_variant_is_right_and_clean(name):
    lk.check("decode_attention", name, seeds=(0,), dtypes=["float32" if int(name[1]) < 4 else "float16"], quiet=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", OP.variants)
def test_every_variant_on_the_gpu(name):
    lk.check("decode_attention", name, quiet=True)


def test_the_reference_is_attention():
    """Against PyTorch's own, sequence by sequence, of caches put together by hand."""
    inputs = inputs_of(heads=4, kv_heads=2, batch=3, page_size=16, fill="mixed", queries=2, dtype=torch.float64)
    got = reference(**inputs)
    for b, length in enumerate(inputs["lengths"].tolist()):
        if length < 2:
            assert length == 0 and (got[b] == 0).all()
            continue
        pages = inputs["block_table"][b, : -(-length // 16)].long()
        k, v = (inputs[name][pages].transpose(0, 1).flatten(1, 2)[:, :length] for name in "kv")
        mask = torch.ones(2, length, dtype=torch.bool).tril(length - 2)
        want = F.scaled_dot_product_attention(inputs["q"][b], k.repeat_interleave(2, 0), v.repeat_interleave(2, 0), attn_mask=mask)
        torch.testing.assert_close(got[b], want)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cache", ["same", "int8", "fp8"])
def test_heads_of_128_in_groups_up_to_more_than_16_rows(cache, device):
    for heads, queries in ((8, 0), (20, 2))[: 2 if cache == "same" else 1]:
        inputs = inputs_of(heads=heads, kv_heads=2 if heads == 8 else 1, head_dim=128, cache=cache, queries=queries, fill="mixed", page_size=16, device=device)
        for name in ON_TENSOR_CORES:
            assert_right(OP.variants[name](**inputs), inputs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ON_TENSOR_CORES)
def test_more_sequences_than_lanes_and_the_same_bits_again(name, device):
    inputs = inputs_of(batch=40, length=90, page_size=16, fill="mixed", device=device)
    first = OP.variants[name](**inputs)
    assert_right(first, inputs)
    assert torch.equal(first, OP.variants[name](**inputs))


@pytest.mark.parametrize("name", ON_TENSOR_CORES)
def test_strided_caches_and_queries(name):
    """A layer of a cache of all layers, whose tokens lie beside each other with all heads; queries cut out of a longer row."""
    inputs = inputs_of(batch=2, length=64, heads=4, kv_heads=2, dtype=torch.float16)
    for each in "kv":
        inputs[each] = inputs[each].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["q"] = torch.cat([inputs["q"], inputs["q"]], dim=1)[:, :4]
    assert_right(OP.variants[name](**inputs), inputs)


def test_the_counters_are_zero_again():
    """v4's blocks count who has come; a second launch on the same counters must find them as the first did."""
    inputs = inputs_of(batch=1, length=600)
    counters = torch.zeros(64, dtype=torch.int32)
    original, tensor_cores.counters = tensor_cores.counters, lambda count, device: counters[:count]
    try:
        results = [OP.variants["v4_tensor_cores"](**inputs) for _ in range(2)]
    finally:
        tensor_cores.counters = original
    assert torch.equal(*results) and not counters.any()
    assert_right(results[0], inputs)


@pytest.mark.parametrize("lengths", [(700, 690, 641), (700, 0, 3)], ids=["about equal", "far apart"])
@pytest.mark.parametrize("cache, page_size", [("same", 0), ("int8", 16)])
def test_a_guess_and_a_wrong_one(lengths, cache, page_size, monkeypatch):
    monkeypatch.setattr(tensor_cores, "ROUND_TOKENS", 8)
    tensor_cores.guess_splits.cache_clear()
    inputs = inputs_of(batch=3, length=700, heads=12, kv_heads=2, cache=cache, page_size=page_size)
    inputs["lengths"] = torch.tensor(lengths, dtype=torch.int32)
    decode_attention_op._spoil(inputs, page_size)
    for blocks, splits in ((1, 1), (2, 2), (9, 3)):  # a split for each head in three rounds of blocks, two in three rounds, three in one
        tiling = Tiling(64, 1, 2, blocks)
        assert tensor_cores.guess_splits(tiling, 6, 700, 2 * blocks) == splits
        with sanitizing():
            got = tensor_cores.guessed(tiling, **inputs)
        assert_right(got, inputs)
    tensor_cores.guess_splits.cache_clear()


def test_heads_are_cut_so_that_rounds_of_blocks_end_together():
    few = GUESSES[128, 1][0]
    for batch, splits in ((1, 16), (8, 2), (12, 4), (16, 1), (20, 4), (32, 1)):
        assert tensor_cores.guess_splits(few, 8 * batch, 8192, 132) == splits
    assert tensor_cores.guess_splits(few, 3, 100, 132) == 1 and tensor_cores.guess_splits(few, 3, 0, 132) == 1


def test_scales_far_apart_do_no_harm():
    """Weights times the values' scales must fit into halves, and queries too."""
    inputs = inputs_of(batch=1, length=90, heads=4, kv_heads=1, cache="int8")
    for magnitude in (1e-12, 1e9):
        inputs["v_scale"] *= magnitude
        inputs["v_scale"][:, :, ::7] *= 1e-4
        inputs["q"] = inputs["q"] * 2.0**20
        inputs["k_scale"] *= 2.0**-20
        for name in ON_TENSOR_CORES:
            got, want = (fn(**inputs).double() for fn in (OP.variants[name], reference))
            assert (got - want).norm() <= torch.finfo(torch.bfloat16).eps * want.norm(), (name, magnitude)


def test_a_mistake_is_named():
    def forgets_the_lengths(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None):
        return reference(q, k, v, lengths - 1, block_table, scale, k_scale=k_scale, v_scale=v_scale)

    def in_order(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None):
        table = None if block_table is None else torch.arange(block_table.numel()).view_as(block_table)
        return reference(q, k, v, lengths, table, scale, k_scale=k_scale, v_scale=v_scale)

    for wrong, hint in ((forgets_the_lengths, "last token of each sequence is left out"), (in_order, "not as the block table says")):
        with pytest.raises(CheckFailed, match=hint):
            lk.check("decode_attention", wrong, dtypes=["float32"], length=[270, 33], quiet=True)


def test_wrong_inputs_are_named():
    good = inputs_of(batch=2, length=32, heads=4, kv_heads=2, page_size=16, cache="int8")
    for change, message in (
        ({"lengths": good["lengths"].long()}, r"lengths is int64 of shape \(2,\); it must be int32 of shape \(2,\)"),
        ({"lengths": good["lengths"] + 1}, r"lengths is \[33, 33\]; each must be 0 to 32"),
        ({"block_table": good["block_table"] + 5}, r"block_table names page \d+; the cache has the pages 0 to 5"),
        ({"k_scale": None}, "k_scale is missing: a cache of int8 has one scale for each token and head"),
        ({"q": good["q"][..., :32]}, "k has head_dim 64, q has 32"),
        ({"q": good["q"][:, :3]}, "q has 3 heads, k has 2; the first must be a multiple of the second"),
        ({"v": good["v"][:, :1]}, r"k is int8 \(6, 2, 16, 64\), v is int8 \(6, 1, 16, 64\); both must be equal"),
        ({"block_table": None}, "k has batch 6, q has 2; both must be equal, or a block_table be given"),
    ):
        with pytest.raises(ArgumentError, match=f"decode_attention: {message}"):
            decode_attention(**{**good, **change})


def test_nothing_to_do():
    q = torch.zeros(0, 4, 64)
    assert decode_attention(q, torch.zeros(0, 2, 8, 64), torch.zeros(0, 2, 8, 64), torch.zeros(0, dtype=torch.int32)).shape == q.shape
    q = torch.ones(1, 4, 64)
    assert (decode_attention(q, torch.zeros(1, 2, 0, 64), torch.zeros(1, 2, 0, 64), torch.zeros(1, dtype=torch.int32)) == 0).all()


def test_bytes_and_flops():
    sizes = shape(2, 100, heads=4, kv_heads=2, head_dim=128)
    assert OP.bytes_moved(torch.bfloat16, **sizes) == 2 * (2 * 100 * 128 * 2 * 2 + 2 * 4 * 128 * 2)
    assert OP.bytes_moved(torch.bfloat16, **{**sizes, "cache": "int8"}) == 2 * (2 * 100 * 2 * (128 + 4) + 2 * 4 * 128 * 2)
    assert OP.flops(**sizes) == 4 * 2 * 4 * 100 * 128


def test_quantising_errs_by_half_a_step():
    x = torch.randn(50, 3, 64)
    x[3] = 0
    for dtype, step in ((torch.int8, 1 / 127), (torch.float8_e4m3fn, 1 / 14)):
        stored, scale = layout.quantise(x, dtype)
        assert ((layout.dequantise(stored, scale) - x).abs() <= 0.51 * step * x.abs().amax(-1, keepdim=True)).all()


@pytest.mark.parametrize("stored", ["__nv_bfloat16", "signed char"])
def test_what_models_use_most_does_not_spill(stored):
    few, many, _ = GUESSES[128, 1]
    for tiling, file, name in (
        (TILINGS[128, 1, False], "v4_tensor_cores.cu", "decode_tensor_cores"), (CLUSTERS[128, 1, False], "v5_cluster.cu", "decode_cluster"),
        (few, "v6_guess.cu", "decode_guess"), (many, "v6_guess.cu", "decode_guess"),
    ):  # fmt: skip
        found = taken(lk.Kernel(tensor_cores.FOLDER / file, f"{name}<__nv_bfloat16, {stored}, {tiling}>"), "sm_90a")
        assert found.spill_stores == 0, (file, stored)


@pytest.mark.gpu
def test_a_captured_step_serves_sequences_as_they_grow():
    inputs = inputs_of(batch=3, length=500, heads=8, kv_heads=2, head_dim=128, page_size=64, device="cuda")
    for name in ON_TENSOR_CORES:
        run = OP.variants[name]
        run(**inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run(**inputs)
        for lengths in ((1, 2, 3), (500, 64, 65), (0, 499, 16)):
            inputs["lengths"].copy_(torch.tensor(lengths, dtype=torch.int32))
            graph.replay()
            assert torch.equal(out, run(**inputs))
            assert_right(out, inputs)
