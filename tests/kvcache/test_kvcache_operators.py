"""torch.ops.labkernels.decode_attention, .prefill_attention and .cache_append: what torch.library asks of an operator, and torch.compile."""

import pytest
import torch

import labkernels as lk
import labkernels.torch_extension  # noqa: F401
from labkernels.kvcache.decode_attention_op import make_inputs, shape

ops = torch.ops.labkernels


def inputs(device="cpu", **other):
    sizes = shape(2, 20, heads=4, kv_heads=2, page_size=16, fill="mixed", **other)
    found = make_inputs(torch.Generator().manual_seed(0), device, torch.float32, **sizes)
    return {name: value.nan_to_num(0.0) if value.is_floating_point() else value for name, value in found.items()}


@pytest.mark.parametrize("cache", ["same", "int8"])
def test_opcheck_of_decode_attention(cache):
    torch.library.opcheck(ops.decode_attention.default, (), inputs(cache=cache))


def test_opcheck_of_prefill_attention():
    given = inputs(queries=3)
    torch.library.opcheck(ops.prefill_attention.default, (), given)
    assert torch.equal(ops.prefill_attention(**given), lk.functional.prefill_attention(**given))


def test_opcheck_of_cache_append():
    k, v = torch.randn(2, 3, 2, 64)
    caches = torch.zeros(2, 4, 2, 16, 64, dtype=torch.int8)
    scales = torch.zeros(2, 4, 2, 16)
    torch.library.opcheck(ops.cache_append.default, (k, v, caches[0], caches[1], torch.tensor([3, 40, -1]), scales[0], scales[1]))


@pytest.mark.gpu
def test_a_step_compiles_in_one_graph():
    given = inputs("cuda")
    k, v = torch.randn(2, 2, 2, 64, device="cuda")
    slots = torch.tensor([0, 17], device="cuda")

    def step(q, k_cache, v_cache, lengths, block_table):
        lk.functional.cache_append(k, v, k_cache, v_cache, slots)
        return lk.functional.decode_attention(q * 2, k_cache, v_cache, lengths, block_table) + 1

    args = [given[name].clone() for name in ("q", "k", "v", "lengths", "block_table")]
    want_args = [each.clone() for each in args]
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(*args), step(*want_args))
    assert torch.equal(args[1], want_args[1])
