"""Tensors that lie in memory in ways of their own: a turned log-sum-exp, and repeated axes (stride 0, by expand), which tensor maps do not have."""

import pytest
import torch

from labkernels.attention import attention, attention_varlen
from labkernels.attention.varlen import OP as FORWARD_VARLEN
from labkernels.attention_backward import attention_backward, attention_backward_varlen
from labkernels.attention_backward.variants import VARIANTS, VARLEN
from labkernels.attention_backward.varlen import OP as BACKWARD_VARLEN
from labkernels.cuda.tensor_map import tensor_map
from labkernels.kvcache import decode_attention
from labkernels.operation import ops
from tests.attention_backward.backward_cases import complete

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


LENGTH = {"v4_split": 66}  # it takes no fewer queries; the others are quicker with 21


def turned(lse):
    """The same values, the last axis not dense."""
    other = lse.mT.contiguous().mT
    assert other.stride(-1) != 1
    return other


def assert_same(got, want):
    for one, other in zip(got, want, strict=True):
        assert other.abs().max() > 0.1
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)  # the order of sums is left to chance


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VARIANTS)
def test_lse_of_any_strides(name, device):
    op = ops["attention_backward"]
    for dtype in (torch.bfloat16, torch.float32):
        inputs = op.make_inputs(torch.Generator().manual_seed(0), device, dtype, **complete({"seq_len": LENGTH.get(name, 21), "heads": 2, "batch": 2}))
        if VARIANTS[name].accepts(**inputs) is None:
            return assert_same(VARIANTS[name].fn(**inputs | {"lse": turned(inputs["lse"])}), VARIANTS[name].fn(**inputs))
    assert device == "cuda", "every version takes one of them in the emulator"
    pytest.skip("this GPU is too old for it")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VARLEN)
def test_lse_of_any_strides_packed(name, device):
    for dtype in (torch.bfloat16, torch.float32):
        inputs = BACKWARD_VARLEN.make_inputs(torch.Generator().manual_seed(0), device, dtype, lengths=(9, LENGTH.get(name, 12)), heads=2)
        if VARLEN[name].accepts(**inputs) is None:
            return assert_same(VARLEN[name].fn(**inputs | {"lse": turned(inputs["lse"])}), VARLEN[name].fn(**inputs))
    assert device == "cuda", "every version takes one of them in the emulator"
    pytest.skip("this GPU is too old for it")


def repeated(kind: str, device) -> tuple[torch.Tensor, ...]:
    """q, k and v (batch 3, 2 heads, 20 rows of 64), k and v repeated over the batches or over the heads."""
    made = torch.Generator().manual_seed(0)
    q = torch.randn(3, 2, 20, 64, generator=made).to(device, torch.bfloat16)
    sizes = {"heads": (3, 1, 20, 64), "batches": (1, 2, 20, 64)}[kind]
    return q, *(torch.randn(sizes, generator=made).to(device, torch.bfloat16).expand_as(q) for _ in "kv")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["heads", "batches"])
def test_expanded_keys_and_values(kind, device):
    q, k, v = repeated(kind, device)
    assert ops["attention"].pick(q=q, k=k, v=v).name >= "v5"
    out, lse = attention(q, k, v, True, return_lse=True)
    assert_same((out, lse), attention(q, k.contiguous(), v.contiguous(), True, return_lse=True))
    assert_same(attention_backward(q, q, k, v, out, lse, True), attention_backward(q, q, k.contiguous(), v.contiguous(), out, lse, True))


@pytest.mark.parametrize("device", DEVICES)
def test_expanded_keys_and_values_of_packed_sequences(device):
    q, k, v = (x[0].transpose(0, 1) for x in repeated("heads", device))
    ends = torch.tensor([0, 7, 20], dtype=torch.int32, device=device)
    assert FORWARD_VARLEN.pick(q=q, k=k, v=v, cu_seqlens_q=ends, cu_seqlens_k=ends).name >= "v5"
    out, lse = attention_varlen(q, k, v, ends, ends, True, return_lse=True)
    assert_same((out, lse), attention_varlen(q, k.contiguous(), v.contiguous(), ends, ends, True, return_lse=True))
    got = attention_backward_varlen(q, q, k, v, out, lse, ends, ends, True)
    assert_same(got, attention_backward_varlen(q, q, k.contiguous(), v.contiguous(), out, lse, ends, ends, True))


@pytest.mark.parametrize("device", DEVICES)
def test_expanded_caches_of_decoding(device):
    q, k, v = repeated("heads", device)
    q, lengths = q[:, :, 0], torch.tensor([20, 3, 11], dtype=torch.int32, device=device)
    assert_same([decode_attention(q, k, v, lengths)], [decode_attention(q, k.contiguous(), v.contiguous(), lengths)])


def test_a_tensor_map_is_of_a_copy_where_an_axis_is_repeated():
    x = torch.randn(4, 1, 64)
    assert tensor_map(x, (1, 1, 32)).tensor is x
    made = tensor_map(x.expand(4, 8, 64), (1, 8, 32))
    assert made.tensor.stride() == (512, 64, 1) and torch.equal(made.tensor, x.expand(4, 8, 64))
