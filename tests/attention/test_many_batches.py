"""More heads of all batches than grid y and z have places (65535): what runs forward runs backward, and what cannot says so."""

import pytest
import torch

from labkernels.attention import attention, attention_varlen, hopper, launches, tensor_cores
from labkernels.attention.op import shape
from labkernels.attention.variants import VARIANTS as FORWARD
from labkernels.attention.variants import VARLEN as FORWARD_VARLEN
from labkernels.attention_backward import attention_backward, attention_backward_varlen
from labkernels.attention_backward.variants import VARIANTS as BACKWARD
from labkernels.attention_backward.variants import VARLEN as BACKWARD_VARLEN
from labkernels.cuda.kernel import Kernel
from labkernels.operation import ops

MANY = 65537
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def launched(monkeypatch):
    """The grids of what is launched, each of which a GPU could have; nothing runs, and nothing is filled with zeros."""
    grids = []

    def only_checked(self, grid, block, args, shared_mem=0, *rest):
        grids.append(self._checked(grid, block, args, shared_mem)[0])

    monkeypatch.setattr(Kernel, "__call__", only_checked)
    monkeypatch.setattr(torch, "zeros", torch.empty)
    return grids


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_picked_can_be_launched_forward_and_backward(dtype, launched):
    for batch, heads, kv_heads, seq_len in ((MANY, 1, 1, 1), (2100, 32, 32, 1), (17000, 8, 4, 1), (MANY, 1, 1, 64)):
        q, k = torch.empty(batch, heads, seq_len, 16, dtype=dtype), torch.empty(batch, kv_heads, seq_len, 16, dtype=dtype)
        out, lse = attention(q, k, k, True, return_lse=True)
        attention_backward(q, q, k, k, out, lse, True)
    assert len(launched) > 6


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_sequences_can_be_launched_forward_and_backward(dtype, launched):
    for sequences, heads in ((MANY, 1), (2100, 32)):
        q, ends = torch.empty(2 * sequences, heads, 16, dtype=dtype), torch.arange(0, 2 * sequences + 1, 2, dtype=torch.int32)
        out, lse = attention_varlen(q, q, q, ends, ends, True, return_lse=True, max_seqlen_q=2)
        attention_backward_varlen(q, q, q, q, out, lse, ends, ends, True, max_seqlen_q=2, max_seqlen_k=2)
    assert len(launched) > 4


@pytest.mark.parametrize("name, dtype", [*((name, torch.float32) for name in ("v1_naive_cuda", "v2_online", "v3_tiled", "v4_warp_tiles", "v7_split")),
                                         ("v5_tensor_cores", torch.bfloat16), ("v6_hopper", torch.bfloat16)])  # fmt: skip
def test_each_variant_launches_or_refuses(name, dtype, launched):
    q = torch.empty(MANY, 1, 1, 16, dtype=dtype)
    refusal = FORWARD[name].accepts(q=q, k=q, v=q)
    if name < "v4":
        assert "at most 65535" in refusal
    else:
        assert refusal is None
        FORWARD[name].fn(q, q, q)
        assert launched


@pytest.fixture
def few_places(monkeypatch):
    monkeypatch.setattr(launches, "MOST", 3)
    monkeypatch.setattr(tensor_cores, "MOST", 3)


@pytest.mark.parametrize("name", FORWARD_VARLEN)
def test_several_launches_give_what_one_gives(name, few_places):
    dtype = torch.float32 if name == "v4_warp_tiles" else torch.bfloat16
    for mask in (None, "pairs") if name == "v4_warp_tiles" else (None,):
        inputs = ops["attention"].make_inputs(torch.Generator().manual_seed(0), "cpu", dtype, **shape(5, batch=5, heads=2, mask=mask))
        _assert_as_before(FORWARD[name].fn, inputs)
    _assert_as_before(FORWARD_VARLEN[name].fn, _packed_inputs("attention_varlen", dtype))


def test_v7_splits_in_several_launches(few_places):
    inputs = ops["attention"].make_inputs(torch.Generator().manual_seed(0), "cpu", torch.float32, **shape(5, batch=5, heads=2))
    _assert_as_before(FORWARD["v7_split"].fn, inputs)


@pytest.mark.parametrize("name", BACKWARD)
def test_several_backward_launches_give_what_one_gives(name, few_places):
    dtype = torch.float32 if name in ("v1_plain", "v4_split") else torch.bfloat16
    sizes = shape(64 if name == "v4_split" else 5, batch=4, heads=2, kv_heads=1, causal=True, mask="pairs" if name == "v1_plain" else None)
    inputs = ops["attention_backward"].make_inputs(torch.Generator().manual_seed(0), "cpu", dtype, **sizes)
    _assert_as_before(BACKWARD[name].fn, inputs | {"deterministic": True})  # else the order of sums of dq is left to chance
    _assert_as_before(BACKWARD_VARLEN[name].fn, _packed_inputs("attention_backward_varlen", dtype) | {"deterministic": True})


def _packed_inputs(op: str, dtype) -> dict:
    from labkernels.attention.varlen import OP as forward
    from labkernels.attention_backward.varlen import OP as backward

    made = {"attention_varlen": forward, "attention_backward_varlen": backward}[op].make_inputs
    return made(torch.Generator().manual_seed(0), "cpu", dtype, lengths=(3, 5, 0, 2, 4), heads=2, kv_heads=1, causal=True)


def _assert_as_before(fn, inputs) -> None:
    several = fn(**inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launches, "MOST", 65535)
        patch.setattr(tensor_cores, "MOST", 65535)
        once = fn(**inputs)
    for got, want in zip(*(result if isinstance(result, tuple) else (result,) for result in (several, once))):
        assert want.abs().max() > 0
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_more_tiles_than_32_bits_count_are_refused():
    q = torch.empty(1, dtype=torch.bfloat16).expand(1 << 21, 8, 64 * 64, 64)
    assert "fewer than 2^30 tiles" in hopper.tiles_refusal(q.shape[2], q.shape[0] * q.shape[1])
    packed, ends = torch.empty(8 * 1024 * 1024, 1, 8, dtype=torch.bfloat16), torch.zeros(10_000, dtype=torch.int32)
    assert "fewer than 2^30 tiles" in FORWARD_VARLEN["v6_hopper"].accepts(packed, packed, packed, ends, ends)
    assert FORWARD_VARLEN["v6_hopper"].accepts(packed, packed, packed, ends, ends, max_seqlen_q=2048) is None


def _on_the_gpu(seq_len: int, dtype) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(MANY + 3, 1, seq_len, 16, device="cuda").to(dtype) for _ in range(4))


PARTS = slice(0, 2), slice(65534, 65538), slice(-2, None)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["v4_warp_tiles", "v5_tensor_cores", "v6_hopper", "v7_split"])
def test_on_the_gpu_batches_beyond_65535_are_as_right_as_the_first(name):
    q, k, v, _ = _on_the_gpu(64 if name == "v7_split" else 3, torch.float32 if name in ("v4_warp_tiles", "v7_split") else torch.bfloat16)
    found = FORWARD[name].fn(q, k, v, True, return_lse=True)
    for part in PARTS:
        for got, want in zip(found, FORWARD[name].fn(q[part], k[part], v[part], True, return_lse=True)):
            torch.testing.assert_close(got[part], want, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", BACKWARD)
def test_on_the_gpu_gradients_of_batches_beyond_65535_are_as_right_as_the_first(name):
    q, k, v, grad = _on_the_gpu(64 if name == "v4_split" else 3, torch.float32 if name in ("v1_plain", "v4_split") else torch.bfloat16)
    out, lse = attention(q, k, v, True, return_lse=True)
    found = BACKWARD[name].fn(grad, q, k, v, out, lse, True)
    for part in PARTS:
        own = (x[part] for x in (grad, q, k, v, out, lse))
        for got, want in zip(found, BACKWARD[name].fn(*own, True)):
            torch.testing.assert_close(got[part], want, rtol=2e-2, atol=2e-2)
