"""Attention on tensor cores (v5): right at odd sizes in every option, no further from float64 than twice PyTorch's own, clean, without conflicts."""

import math

import pytest
import torch
import torch.nn.functional as F

from labkernels.attention import tensor_cores
from labkernels.attention.reference import reference, visible
from labkernels.attention.tensor_cores import ROOMY_TILINGS, TILINGS, VARIANT, Tiling, attention, attention_varlen, configured
from labkernels.cuda import sanitizing
from labkernels.cuda.emulator import profile
from labkernels.cuda.variants import kernel
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.bfloat16, torch.float16]


def random(seq_len, kv_len=None, head_dim=64, batch=1, heads=1, kv_heads=None, device="cpu", dtype=torch.bfloat16, magnitude=1.0):
    generator = torch.Generator().manual_seed(seq_len + head_dim)
    kv_len = seq_len if kv_len is None else kv_len
    q = magnitude * torch.randn(batch, heads, seq_len, head_dim, generator=generator)
    k, v = (torch.randn(batch, kv_heads or heads, kv_len, head_dim, generator=generator) for _ in range(2))
    return (tensor.to(device, dtype) for tensor in (q, k, v))


def native(q, k, v, causal=False, scale=None, *, window=None, mask=None) -> torch.Tensor:
    """PyTorch's own, in the inputs' dtype."""
    hidden = ~visible(q.shape[2], k.shape[2], q.device, causal, window)
    bias = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.float32, device=q.device)
    if mask is not None:
        bias = bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.masked_fill(hidden, -torch.inf).to(q.dtype), scale=scale, enable_gqa=True)


def assert_right(result, q, k, v, causal=False, scale=None, **options) -> None:
    """At most twice as far from float64 as PyTorch's own, and everywhere within what rounding the weights and the result may cost."""
    got, lse = result if isinstance(result, tuple) else (result, None)
    want, want_lse = reference(q.double(), k.double(), v.double(), causal, scale, **options, return_lse=True)
    assert got.shape == q.shape and got.dtype == q.dtype and got.device == q.device and got.is_contiguous()
    epsilon = torch.finfo(q.dtype).eps
    error = (got.double() - want).abs()
    assert (error <= epsilon * (want.abs() + v.double().abs().max() / 2)).all(), error.max()
    mean = (native(q, k, v, causal, scale, **options).double() - want).nan_to_num(0.0).square().mean().sqrt()
    assert error.square().mean().sqrt() <= 2 * mean + 1e-6
    if lse is not None:
        assert lse.shape == q.shape[:3] and lse.dtype == torch.float32
        torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_odd_lengths_with_and_without_causal_mask(head_dim, dtype, device):
    for seq_len, kv_len in ((1, 1), (3, 33), (33, 3), (65, 130), (130, 65), (1, 300)):
        q, k, v = random(seq_len, kv_len, head_dim, device=device, dtype=dtype)
        for causal in (False, True):
            assert_right(attention(q, k, v, causal, return_lse=True), q, k, v, causal)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_dim", [1, 7, 8, 24, 32, 80, 96, 100, 200])
def test_any_head_dim(head_dim, device):
    q, k, v = random(37, 70, head_dim, heads=2, device=device)
    assert_right(attention(q, k, v, causal=True, scale=0.2), q, k, v, causal=True, scale=0.2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tiling", [*TILINGS.values(), *ROOMY_TILINGS.values(), Tiling(64, 4, 2, 32, 4, True, 2)], ids=str)
def test_every_tiling(tiling, device):
    for seq_len, kv_len, window in ((3, 5, None), (150, 210, None), (140, 40, None), (200, 333, (50, 0)), (200, 200, (0, 100))):
        q, k, v = random(seq_len, kv_len, tiling.head_dim, heads=2, kv_heads=1, device=device)
        got = configured(tiling, q, k, v, causal=window is None, window=window, return_lse=True)
        assert_right(got, q, k, v, causal=window is None, window=window)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_grouped_heads_of_several_batches(kv_heads, device, monkeypatch):
    monkeypatch.setattr(tensor_cores, "L2_BYTES", 4 * 70 * 64 * 2)  # two heads of k and v at a time: some blocks find nothing to do
    q, k, v = random(66, 70, batch=3, heads=6, kv_heads=kv_heads, device=device)
    assert_right(attention(q, k, v, causal=True), q, k, v, causal=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("window", [(0, 0), (5, 3), (70, None), (None, 10), (1000, 1000)])
@pytest.mark.parametrize("causal", [False, True])
def test_sliding_windows(causal, window, device):
    for seq_len, kv_len in ((130, 130), (65, 200), (130, 33)):
        q, k, v = random(seq_len, kv_len, device=device)
        assert_right(attention(q, k, v, causal, window=window, return_lse=True), q, k, v, causal, window=window)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(2, 4, 70, 130), (130,), (70, 1), (2, 1, 1, 130), (4, 70, 130)])
@pytest.mark.parametrize("kind", [torch.bool, torch.bfloat16, torch.float32])
def test_masks(kind, shape, device):
    q, k, v = random(70, 130, batch=2, heads=4, kv_heads=2, device=device)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
    mask = values > -0.3 if kind is torch.bool else values.masked_fill(values > 1, -torch.inf).to(kind)
    assert_right(attention(q, k, v, mask=mask, return_lse=True), q, k, v, mask=mask)
    assert_right(attention(q, k, v, True, 0.3, window=(60, None), mask=mask), q, k, v, True, 0.3, window=(60, None), mask=mask)


@pytest.mark.parametrize("device", DEVICES)
def test_queries_that_see_no_key_get_zeros(device):
    q, k, v = random(140, 9, device=device)
    out, lse = attention(q, k, v, causal=True, return_lse=True)
    assert out[:, :, :131].eq(0).all() and lse[:, :, :131].eq(-math.inf).all()
    assert out[:, :, 131:].ne(0).all() and lse[:, :, 131:].isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("causal", [False, True])
def test_no_keys_at_all(causal, device):
    q, k, v = random(33, 0, heads=2, device=device)
    out, lse = attention(q, k, v, causal, return_lse=True)
    assert out.eq(0).all() and lse.eq(-math.inf).all()
    assert torch.equal(out, F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("shape", [(0, 2, 5, 64), (2, 0, 5, 64), (2, 2, 0, 64)])
def test_no_queries_at_all(shape):
    q, kv = torch.empty(shape, dtype=torch.bfloat16), torch.empty(*shape[:2], 7, 64, dtype=torch.bfloat16)
    out, lse = attention(q, kv, kv, return_lse=True)
    assert out.shape == q.shape and lse.shape == shape[:3]


@pytest.mark.parametrize("device", DEVICES)
def test_strided_tensors(device):
    q, k, v = (tensor.transpose(1, 2) for tensor in random(5, 5, heads=70, device=device))  # (batch, seq, heads, head_dim)
    assert_right(attention(q, k, v, causal=True), q, k, v, causal=True)
    packed = torch.randn(1, 2, 70, 3 * 64 + 8, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    for first in (0, 8, 1):  # whole chunks of 16 bytes, then no chunk on a multiple of 16 bytes
        q, k, v = (packed[..., first + 64 * i : first + 64 * (i + 1)] for i in range(3))
        assert_right(attention(q, k, v), q, k, v)
    k, v = (packed[:, :, :1, first : first + 64].expand(-1, -1, 70, -1) for first in (64, 128))
    assert_right(attention(q, k, v), q, k, v)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [0.0, -0.7, 2.0])
def test_scales(scale, device):
    q, k, v = random(40, 70, device=device)
    assert_right(attention(q, k, v, True, scale), q, k, v, True, scale)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_and_maxima_that_keep_growing(dtype, device):
    q, k, v = random(65, 300, dtype=dtype, device=device, magnitude=20.0)
    assert_right(attention(q, k, v), q, k, v)
    k = (k * torch.linspace(0, 1, 300, device=device)[:, None]).to(dtype)  # each tile's largest score exceeds all before it
    assert_right(attention(q, k, v, return_lse=True), q, k, v)


@pytest.mark.parametrize("device", DEVICES)
def test_inf_and_nan_go_where_pytorch_sends_them(device):
    q, k, v = random(40, 70, device=device)
    q[0, 0, 3, 5], q[0, 0, 20, 0], k[0, 0, 60, 7], v[0, 0, 4, 9] = math.nan, math.inf, math.inf, math.nan
    want = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert torch.equal(attention(q, k, v).isnan(), want.isnan()) and want.isnan().any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (9, 2)}, {"scale": -0.1}], ids=str)
@pytest.mark.parametrize("head_dim", [64, 20])
def test_packed_sequences(head_dim, options, device):
    lengths = ((3, 3), (0, 5), (130, 150), (40, 0), (33, 20), (1, 70))
    ends_q, ends_k = (torch.tensor([0, *(pair[i] for pair in lengths)]).cumsum(0).int().to(device) for i in range(2))
    generator = torch.Generator().manual_seed(head_dim)
    q = torch.randn(int(ends_q[-1]), 4, head_dim, generator=generator).to(device, torch.bfloat16)
    k, v = (torch.randn(int(ends_k[-1]), 2, head_dim, generator=generator).to(device, torch.bfloat16) for _ in range(2))
    out, lse = attention_varlen(q, k, v, ends_q, ends_k, return_lse=True, **options)
    assert out.shape == q.shape and lse.shape == (4, q.shape[0])
    assert torch.equal(attention_varlen(q, k, v, ends_q, ends_k, max_seqlen_q=500, **options), out)
    for b, (seq_len, kv_len) in enumerate(lengths):
        rows, keys = slice(ends_q[b], ends_q[b] + seq_len), slice(ends_k[b], ends_k[b] + kv_len)
        alone = [tensor.transpose(0, 1)[None].contiguous() for tensor in (q[rows], k[keys], v[keys])]
        if seq_len and kv_len:
            got = out[rows].transpose(0, 1)[None].contiguous(), lse[None, :, rows]
            assert_right(got, *alone, **options)
        else:
            assert out[rows].eq(0).all() and lse[:, rows].eq(-math.inf).all()


@pytest.mark.parametrize("tiling", [*TILINGS.values(), Tiling(64, 4, 2, 32, 4, True, 2)], ids=str)
def test_clean_under_the_sanitizer(tiling):
    with sanitizing():
        q, k, v = random(tiling.queries + 3, 2 * tiling.keys + 5, tiling.head_dim, heads=2, kv_heads=1)
        assert_right(configured(tiling, q, k, v, causal=True, return_lse=True), q, k, v, causal=True)
        q, k, v = random(9, 40, tiling.head_dim - 1)
        assert_right(configured(tiling, q, k, v, mask=torch.arange(40) != 7), q, k, v, mask=torch.arange(40) != 7)


@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
def test_shared_memory_has_no_bank_conflicts(tiling, monkeypatch):
    reports = []
    monkeypatch.setattr(tensor_cores, "kernel", lambda *name: lambda *launch: reports.append(profile(kernel(*name), *launch)))
    configured(tiling, *random(tiling.queries, 3 * tiling.keys, tiling.head_dim))
    (report,) = reports
    assert report.shared_load_requests > 0 and report.shared_load_conflicts == report.shared_store_conflicts == 0


def test_refusals_say_why():
    q, k, v = random(3)
    assert VARIANT.accepts(q=q, k=k, v=v, causal=True, scale=None) is None
    assert VARIANT.accepts(q=q.float(), k=k.float(), v=v.float()) == "takes bfloat16 and float16"
    q, k, v = random(3, head_dim=264)
    assert VARIANT.accepts(q=q, k=k, v=v) == "takes a head_dim of 1 to 256"
    q, k, v = random(3)
    assert "k's are not" in VARIANT.accepts(q=q, k=k.transpose(2, 3).contiguous().transpose(2, 3), v=v)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("tiling", [*TILINGS.values(), Tiling(64, 4, 2, 32, 4, True, 2)], ids=str)
def test_compiles_without_spills(tiling: Tiling, arch):
    resources = taken(kernel(tensor_cores.FILE, "attention_tensor_cores", torch.bfloat16, tiling, 0, 8, "false"), arch)
    assert resources.spill_stores == resources.stack == 0, resources
    assert resources.registers * 32 * tiling.warps * tiling.blocks <= 65536
